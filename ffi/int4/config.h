// The compiled kernels and the heuristics that choose one. Host code without CUDA.
#pragma once

#include <algorithm>
#include <cstdint>

#include "int4/params.h"

namespace jax_baracuda {

// A kernel for few rows (small.cuh): 8 blocks rows of x, warps of 16 warp_blocks channels next to each other and in depth.
// `ns`: what 64 x 64 weights take an SM, measured on an H200.
struct SmallTile {
  int blocks, channel_warps, depth_warps, stages, ctas_per_sm, warp_blocks;
  int ns;
  constexpr int rows() const { return 8 * blocks; }
  constexpr int channels() const { return 16 * channel_warps * warp_blocks; }
  constexpr int threads() const { return 32 * channel_warps * depth_warps; }
};

// Narrow tiles first: they need the fewest CTAs to share a sum. The last one of each height fits 99 KB of shared memory.
inline constexpr SmallTile kSmallTiles[] = {
    {1, 1, 16, 2, 1, 2, 59}, {1, 4, 4, 2, 1, 4, 56},  {1, 2, 4, 2, 2, 4, 59},
    {1, 1, 8, 2, 2, 4, 58},  {1, 1, 4, 2, 4, 4, 57},  {2, 1, 8, 2, 1, 4, 68},
    {2, 4, 4, 2, 1, 4, 66},  {2, 2, 4, 2, 2, 4, 77},  {2, 1, 4, 2, 3, 4, 69},
    {4, 2, 4, 3, 1, 4, 126}, {4, 2, 2, 2, 2, 4, 143},
};

inline constexpr int kMostExchangeBytes = 232448 - 512;  // of shared memory

// A kernel for Hopper: warpgroups of 64 channels, next to each other and in depth, and n rows of x. `ns`: what a tile
// of 64 input channels takes a CTA, where one CTA has the whole SM, measured on an H200. `stages`: at most.
struct HopperInt4Tile {
  int channel_groups, depth_groups, n, stages;
  int ns;
  constexpr int channels() const { return channel_groups * kStrip; }
  constexpr int groups() const { return channel_groups * depth_groups; }
  // Two CTAs that each keep half of the sums in registers: exchange.cuh.
  constexpr bool halves(int splits) const { return depth_groups <= 2 && splits == 2; }
  // Whether CTAs of a cluster can add up their sums.
  constexpr bool clusters(int splits) const {
    const int part = channels() * n * 4;
    const int bytes = halves(splits) ? part * 3 / 2 : (depth_groups + 1) * part;
    return n / 8 % splits == 0 && bytes <= kMostExchangeBytes;
  }
};

// For a medium number of rows (medium.cuh). Seven strips, as 28672 channels are 64 times seven, fill a device that has a few
// more than 128 SMs.
inline constexpr HopperInt4Tile kMediumTiles[] = {
    {4, 2, 32, 4, 360},  {2, 4, 32, 4, 183}, {1, 8, 32, 4, 107}, {7, 1, 32, 5, 605},
    {4, 1, 64, 6, 450},  {2, 2, 64, 4, 222}, {7, 1, 64, 4, 807}, {4, 1, 128, 4, 730},
    {2, 2, 128, 4, 387}, {7, 1, 16, 6, 478},
};
inline constexpr int kMediumUnit = 2;  // tiles of the depth that a warpgroup takes at a time
inline constexpr int kMediumRows = 512, kMediumRowBlocks = 4;  // at most

// For many rows (large.cuh).
inline constexpr HopperInt4Tile kLargeTiles[] = {
    {2, 1, 128, 8, 485},
    {2, 1, 256, 5, 745},
};

// CTAs of large.cuh next to each other that load rows of x for each other.
constexpr int large_pair(int n) { return n == 256 ? 2 : 1; }

inline constexpr int kMaxInt4Splits = 8;
// So many rows go to the small kernels on Hopper too; up to kEitherRows those do that are expected to take less time.
inline constexpr int kFewRows = 8, kEitherRows = 32;
// Sums may go through memory; there is room for more of them where there are more rows than kPartRows, as tiles may be divided.
inline constexpr int kPartRows = 128;
// What they may take there, of up to kSmallRows rows and of more.
inline constexpr int kSmallRows = 16;
inline constexpr int64_t kSmallBytes = int64_t{4} << 20, kPartBytes = int64_t{8} << 20,
                         kStreamBytes = int64_t{33} << 20;
inline constexpr int64_t kMaxGridZ = 65535;

// Bytes for sums that go through memory: see the JAX side's shapes.workspace_bytes, of which this is the same.
constexpr int64_t int4_workspace_bytes(int64_t rows, int64_t width, int64_t depth_tiles) {
  if (rows == 0 || width == 0 || depth_tiles == 0) return 0;
  if (rows > kPartRows) return kStreamBytes;
  const int64_t floats = (rows > kSmallRows ? kPartBytes : kSmallBytes) / 4;
  const int64_t splits = std::min({int64_t{kMaxInt4Splits}, depth_tiles, floats / (rows * width)});
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
  int splits = 0;         // 0: no such plan
  int64_t ns = 0;         // that it is expected to take
  bool parts = false;     // of the splits go through the workspace, not a cluster
  bool streamed = false;  // the last wave's tiles are divided
};

constexpr bool operator<(const Int4Split& a, const Int4Split& b) {
  return a.splits > 0 && (b.splits == 0 || a.ns < b.ns);
}

// Splits of the depth for a small tile: what the SM with most of the weights takes for them.
inline Int4Split split_small(const Int4Shape& s, const Int4Device& device, const SmallTile& tile) {
  constexpr int64_t kStartNs = 2300, kClusterNs = 570, kCombineNs = 2500;
  constexpr int64_t kBusyWarps = 8;  // fewer on an SM wait for memory most of the time
  const int64_t units = (s.depth_tiles + 1) / 2;
  const int64_t blocks = (s.strips * kStrip + tile.channels() - 1) / tile.channels() *
                         ((s.rows + tile.rows() - 1) / tile.rows());
  Int4Split best;
  for (int splits = 1; splits <= kMaxInt4Splits; splits *= 2) {
    if (splits > 1 && splits > units) break;
    if (device.clusters
            ? tile.warp_blocks * tile.channel_warps % splits != 0
            : splits > 1 && 4 * splits * s.rows * s.strips * kStrip > device.workspace_bytes)
      break;
    const int64_t ctas = blocks * splits;
    const int64_t busiest = (ctas + device.sms - 1) / device.sms;
    const int64_t warps = std::min<int64_t>(busiest, tile.ctas_per_sm) * tile.threads() / 32;
    int64_t ns = busiest * tile.channels() * 2 * ((units + splits - 1) / splits) * tile.ns / kStrip;
    if (warps < kBusyWarps) ns = ns * kBusyWarps / warps;
    // Several scales a stage, and more instructions for weights.
    if (tile.blocks == 2 && (scale_steps(s) < 8 || s.dtype == DType::kBF16)) ns += ns / 20;
    if (ctas > running_ctas(device, tile.ctas_per_sm, splits))
      ns += tile.ctas_per_sm == 1 ? ns : ns / 4;  // starts and ends in between
    if (splits > 1) ns += device.clusters ? kClusterNs : kCombineNs;
    const Int4Split split = {splits, kStartNs + ns};
    if (split < best) best = split;
  }
  return best;
}

// The lowest of the small tiles that have enough rows, or the highest.
constexpr int small_blocks(int64_t rows) { return rows <= 8 ? 1 : rows <= 16 ? 2 : 4; }

constexpr int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A launch, the first loads and the output.
inline constexpr int64_t kHopperStartNs = 3100;

// The same for a tile of the kernels for Hopper. `unit`: tiles of the depth that stay together. Splits that do not all run at
// once are slower than anything else (measured: 550 us for 376).
inline Int4Split split_hopper(const Int4Shape& s, const Int4Device& device,
                              const HopperInt4Tile& tile, int unit, bool parts) {
  const int64_t sums = tile.channels() * tile.n;
  const int64_t fold_ns = tile.depth_groups > 1 ? 90 + tile.depth_groups * sums / 1250 : 0;
  const int64_t blocks =
      ceil_divide(s.rows, tile.n) * ceil_divide(s.strips * kStrip, tile.channels());
  const int64_t units = ceil_divide(s.depth_tiles, unit);
  Int4Split best;
  for (int splits = parts ? 2 : 1; splits <= kMaxInt4Splits; splits += parts ? 1 : splits) {
    const int64_t running = running_ctas(device, 1, parts ? 1 : splits);
    const int64_t waves = ceil_divide(blocks * splits, running);
    if (splits > 1 && (splits > units || waves > 1)) break;
    const int64_t elements = splits * s.rows * s.strips * kStrip;
    if (parts ? 4 * elements > device.workspace_bytes : splits > 1 && !tile.clusters(splits)) break;
    // Across a cluster: what a CTA sends and gets. Through memory: another kernel.
    const int64_t add_up_ns = parts                 ? 2700 + elements / 1100
                              : tile.halves(splits) ? 1250 + sums / 40
                              : splits > 1          ? 1500 + sums * 56 / 1000
                                                    : 0;
    const int64_t rounds = ceil_divide(ceil_divide(units, splits), tile.depth_groups);
    const int64_t ns =
        rounds * tile.depth_groups * unit * tile.ns + kHopperStartNs + fold_ns + add_up_ns;
    const Int4Split split = {splits, waves * ns, parts, false};
    if (split < best) best = split;
  }
  return best;
}

// For a medium number of rows, in a grid whose last dimension are channel blocks.
inline Int4Split split_medium(const Int4Shape& s, const Int4Device& device,
                              const HopperInt4Tile& tile) {
  if (s.rows > kMediumRows || s.rows > kMediumRowBlocks * tile.n ||
      s.strips > kMaxGridZ * (tile.channels() / kStrip))
    return {};
  const Int4Split cluster = split_hopper(s, device, tile, kMediumUnit, false);
  const Int4Split parts = split_hopper(s, device, tile, kMediumUnit, true);
  return parts < cluster ? parts : cluster;
}

// What the pairs of CTAs of a large tile do: so many tiles of a pair each, and then divide the depth of those left over.
struct LargeDivision {
  int pairs;
  int64_t tiles, left;  // of a pair; of them those that make no whole wave
  LargeDivision(const Int4Shape& s, int sms, const HopperInt4Tile& tile)
      : pairs(std::max(sms / large_pair(tile.n), 1)),
        tiles(ceil_divide(s.rows, tile.n) *
              ceil_divide(ceil_divide(s.strips * kStrip, tile.channels()), large_pair(tile.n))),
        left(tiles % pairs) {}
  // Bytes of the workspace: a slot for every part of a tile.
  int64_t bytes(const HopperInt4Tile& tile) const {
    return (pairs + left) * large_pair(tile.n) * tile.channels() * tile.n * 4;
  }
};

// For many rows.
inline Int4Split split_large(const Int4Shape& s, const Int4Device& device,
                             const HopperInt4Tile& tile) {
  if (large_pair(tile.n) == 1) return split_hopper(s, device, tile, 1, false);
  constexpr int64_t kStoreNs = 2200;
  const LargeDivision d(s, device.sms, tile);
  const int64_t stream_ns =
      d.tiles > d.left ? 10500 : 15200;  // more where no whole wave goes before
  const int64_t whole_ns = s.depth_tiles * tile.ns + kStoreNs;
  const Int4Split whole = {1, kHopperStartNs + ceil_divide(d.tiles, d.pairs) * whole_ns};
  if (d.left == 0 || d.bytes(tile) > device.workspace_bytes) return whole;
  const Int4Split streamed = {1,
                              kHopperStartNs + d.tiles / d.pairs * whole_ns + stream_ns +
                                  ceil_divide(d.left * s.depth_tiles, d.pairs) * tile.ns,
                              false, true};
  return streamed < whole ? streamed : whole;
}

// What runs on Hopper: a place in one of the tables of tiles, and splits; no splits: none does.
struct HopperChoice {
  bool medium = false;
  int tile = 0;
  Int4Split split;
};

inline HopperChoice choose_hopper(const Int4Shape& s, const Int4Device& device) {
  HopperChoice best;
  int at = 0;
  const auto consider = [&](bool medium, const Int4Split& split) {
    if (split < best.split) best = {medium, at, split};
    ++at;
  };
  for (const HopperInt4Tile& tile : kMediumTiles) consider(true, split_medium(s, device, tile));
  at = 0;
  for (const HopperInt4Tile& tile : kLargeTiles) consider(false, split_large(s, device, tile));
  return best;
}

// The small tile and splits for a device where all of them fit: a place in the table.
struct SmallChoice {
  int tile = 0;
  Int4Split split;
};

inline SmallChoice choose_small(const Int4Shape& s, const Int4Device& device) {
  SmallChoice best;
  int at = 0;
  for (const SmallTile& tile : kSmallTiles) {
    if (tile.blocks == small_blocks(s.rows)) {
      const Int4Split split = split_small(s, device, tile);
      if (split < best.split) best = {at, split};
    }
    ++at;
  }
  return best;
}

// Whether the small kernels take a problem on Hopper.
inline bool small_on_hopper(const Int4Shape& s, const Int4Device& device,
                            const HopperChoice& other) {
  return s.rows <= kFewRows ||
         (s.rows <= kEitherRows && choose_small(s, device).split < other.split);
}

}  // namespace jax_baracuda
