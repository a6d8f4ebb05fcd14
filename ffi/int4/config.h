// The compiled kernels and the heuristics that choose one. Host code without CUDA.
#pragma once

#include <algorithm>
#include <cstdint>

#include "int4/params.h"

namespace jax_baracuda {

// A kernel for few rows (small.cuh): 8 blocks rows of x, warps of 64 channels next to each other and in depth.
struct SmallTile {
  int blocks, channel_warps, depth_warps, stages, ctas_per_sm;
  constexpr int rows() const { return 8 * blocks; }
  constexpr int threads() const { return 32 * channel_warps * depth_warps; }
};

// Narrow tiles first: they need the fewest CTAs to share a sum. The last one of each height fits 99 KB of shared memory.
inline constexpr SmallTile kSmallTiles[] = {
    {1, 1, 8, 2, 2}, {1, 2, 4, 2, 2}, {2, 1, 8, 3, 1}, {2, 2, 4, 2, 2},
    {2, 2, 2, 2, 3}, {4, 2, 4, 3, 1}, {4, 2, 2, 2, 2},
};

// A kernel for Hopper: warpgroups of 64 strips channels, next to each other and in depth, and n rows of x. `ns`: what a tile
// of 64 input channels takes a CTA, where one CTA has the whole SM. `stages`: at most.
struct HopperInt4Tile {
  int strips, channel_groups, depth_groups, n, stages;
  int ns;
  constexpr int channels() const { return strips * channel_groups * kStrip; }
  constexpr int groups() const { return channel_groups * depth_groups; }
  constexpr int quads() const {
    return strips * n / 8;
  }  // that CTAs of a cluster share: exchange.cuh
};

// For a medium number of rows (medium.cuh). `ns` is predicted, not measured: see docs/int4.md. Seven strips, as 28672
// channels are 64 times seven, fill a device that has a few more than 128 SMs.
inline constexpr HopperInt4Tile kMediumTiles[] = {
    {1, 4, 2, 16, 4, 260},  {1, 2, 4, 16, 4, 130},  {1, 1, 8, 16, 4, 85},  {1, 4, 2, 32, 4, 290},
    {1, 2, 4, 32, 4, 170},  {1, 1, 8, 32, 4, 125},  {1, 4, 1, 64, 6, 400}, {1, 2, 2, 64, 4, 250},
    {1, 4, 1, 128, 4, 740}, {1, 2, 2, 128, 4, 420}, {1, 7, 1, 16, 6, 450}, {1, 7, 1, 32, 5, 480},
};
inline constexpr int kMediumUnit = 2;  // tiles of the depth that a warpgroup takes at a time
inline constexpr int kMediumRows = 256;

// For many rows (large.cuh), measured on an H200.
inline constexpr HopperInt4Tile kLargeTiles[] = {
    {2, 2, 1, 64, 8, 710},
    {1, 2, 1, 128, 8, 490},
    {2, 2, 1, 128, 4, 820},
    {1, 2, 1, 256, 5, 720},
};

inline constexpr int kMaxInt4Splits = 8;
inline constexpr int kSmallRows = 8;  // more rows go to the kernels for Hopper where those run
inline constexpr int64_t kMaxGridZ = 65535;

// Bytes for partial sums where clusters cannot add them up: see the JAX side's shapes.workspace_bytes.
constexpr int64_t int4_workspace_bytes(int64_t rows, int64_t width, int64_t depth_tiles) {
  if (rows == 0 || width == 0) return 0;
  const int64_t splits =
      std::min({int64_t{kMaxInt4Splits}, depth_tiles, (int64_t{1} << 20) / (rows * width)});
  return splits >= 2 ? 4 * splits * rows * width : 0;
}

// k-steps of 16 input channels that share a scale, as far as the small kernels tell groups apart.
constexpr int scale_steps(const Int4Shape& s) {
  if (s.group_size == 32) return 2;
  return s.group_size % 128 == 0 || s.group_size >= s.depth_tiles * kDepth ? 8 : 4;
}

// What the heuristics know of a device.
struct Int4Device {
  int sms;
  bool clusters;            // CTAs of a cluster add up their parts
  int64_t workspace_bytes;  // otherwise partial sums go here
};

// CTAs that run at once, in clusters of `splits`. Where an SM holds one, GPCs leave some SMs of larger clusters over.
constexpr int running_ctas(const Int4Device& device, int ctas_per_sm, int splits) {
  const int all = device.sms * ctas_per_sm;
  return splits <= 2 ? all : all - all / 11;
}

struct Int4Split {
  int splits = 0;  // 0: no such plan
  int64_t cost = 0;
};

// Splits of the depth for a small tile. The cost is what the busiest SM reads, in units of two tiles of weights.
inline Int4Split split_small(const Int4Shape& s, const Int4Device& device, const SmallTile& tile) {
  const int64_t units = (s.depth_tiles + 1) / 2;
  const int64_t blocks = (s.strips + tile.channel_warps - 1) / tile.channel_warps *
                         ((s.rows + tile.rows() - 1) / tile.rows());
  Int4Split best;
  for (int splits = 1; splits <= kMaxInt4Splits; splits *= 2) {
    if (splits > 1 && splits > units) break;
    if (device.clusters
            ? 4 * tile.channel_warps % splits != 0
            : splits > 1 && 4 * splits * s.rows * s.strips * kStrip > device.workspace_bytes)
      break;
    const int64_t ctas = blocks * splits;
    const int64_t busiest = (ctas + device.sms - 1) / device.sms;
    int64_t cost = 100 * busiest * tile.channel_warps * ((units + splits - 1) / splits);
    if (ctas > running_ctas(device, tile.ctas_per_sm, splits))
      cost += cost / 8;                                 // starts and ends in between
    cost += splits > 1 ? cost / 16 + 200 * splits : 0;  // adding up
    if (best.splits == 0 || cost < best.cost) best = {splits, cost};
  }
  return best;
}

// The same for a tile of the kernels for Hopper; the cost is in nanoseconds. `unit`: tiles of the depth that stay together.
inline Int4Split split_hopper(const Int4Shape& s, const Int4Device& device,
                              const HopperInt4Tile& tile, int unit) {
  constexpr int64_t kStartNs = 1500;
  const int64_t sums = tile.channels() * tile.n;
  const int64_t add_up_ns = 600 + sums * 8 / 100;  // across a cluster: what a CTA sends and gets
  const int64_t fold_ns = tile.depth_groups > 1 ? 300 + tile.depth_groups * sums / 28 : 0;
  const int64_t row_blocks = (s.rows + tile.n - 1) / tile.n;
  const int64_t channel_blocks = (s.strips * kStrip + tile.channels() - 1) / tile.channels();
  const int64_t units = (s.depth_tiles + unit - 1) / unit;
  Int4Split best;
  if (unit > 1 && channel_blocks > kMaxGridZ) return best;
  for (int splits = 1; splits <= kMaxInt4Splits; splits *= 2) {
    if (splits > 1 && (splits > units || tile.quads() % splits != 0)) break;
    const int64_t running = running_ctas(device, 1, splits);
    const int64_t waves = (row_blocks * channel_blocks * splits + running - 1) / running;
    const int64_t of_cta = (units + splits - 1) / splits;
    const int64_t rounds = (of_cta + tile.depth_groups - 1) / tile.depth_groups;
    const int64_t ns = rounds * tile.depth_groups * unit * tile.ns + kStartNs + fold_ns +
                       (splits > 1 ? add_up_ns : 0);
    const int64_t cost = waves * ns;
    if (best.splits == 0 || cost < best.cost) best = {splits, cost};
  }
  return best;
}

// What runs on Hopper: a place in one of the tables of tiles, and splits; no splits: none does.
struct HopperChoice {
  bool medium = false;
  int tile = 0;
  Int4Split split;
};

inline HopperChoice choose_hopper(const Int4Shape& s, const Int4Device& device) {
  HopperChoice best;
  const auto consider = [&](bool medium, int tile, const Int4Split& split) {
    if (split.splits > 0 && (best.split.splits == 0 || split.cost < best.split.cost))
      best = {medium, tile, split};
  };
  int at = 0;
  for (const HopperInt4Tile& tile : kMediumTiles)
    if (s.rows <= kMediumRows) consider(true, at++, split_hopper(s, device, tile, kMediumUnit));
  at = 0;
  for (const HopperInt4Tile& tile : kLargeTiles)
    consider(false, at++, split_hopper(s, device, tile, 1));
  return best;
}

}  // namespace jax_baracuda
