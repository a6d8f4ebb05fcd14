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

// A kernel for many rows on Hopper (large.cuh): warpgroups of 64 strips channels, next to each other and in depth, and n
// rows of x. `ns`: what a tile of 64 input channels takes a CTA, measured on an H200.
struct LargeTile {
  int strips, channel_groups, depth_groups, n, stages;
  int ns;
  constexpr int channels() const { return strips * channel_groups * kStrip; }
};

inline constexpr LargeTile kLargeTiles[] = {
    {2, 2, 1, 64, 8, 800},
    {1, 2, 1, 128, 8, 600},
    {2, 2, 1, 128, 4, 820},
    {1, 2, 1, 256, 5, 700},
};

inline constexpr int kMaxInt4Splits = 8;
inline constexpr int kSmallRows = 32;  // more rows go to the large kernels where those run

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

// The same for a large tile; the cost is in nanoseconds.
inline Int4Split split_large(const Int4Shape& s, const Int4Device& device, const LargeTile& tile) {
  constexpr int64_t kStartNs = 1500, kAddUpNs = 1500;
  const int64_t tiles = (s.strips * kStrip + tile.channels() - 1) / tile.channels() *
                        ((s.rows + tile.n - 1) / tile.n);
  Int4Split best;
  for (int splits = 1; splits <= kMaxInt4Splits; splits *= 2) {
    if (splits > 1 && (splits > s.depth_tiles || tile.channels() / 16 % splits != 0)) break;
    const int64_t running = running_ctas(device, 1, splits);
    const int64_t waves = (tiles * splits + running - 1) / running;
    const int64_t depth = (s.depth_tiles + splits - 1) / splits;
    const int64_t cost = waves * (depth * tile.ns + kStartNs) + (splits > 1 ? kAddUpNs : 0);
    if (best.splits == 0 || cost < best.cost) best = {splits, cost};
  }
  return best;
}

}  // namespace jax_baracuda
