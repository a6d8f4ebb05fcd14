// What a launch of an int4 kernel needs to know. Plain data: host and device read the same structs.
//
// out [M, OC] = x [M, K] w [K, OC] + bias, w = (q - zero) * scale with a scale and a zero point for every output channel
// and group of input channels.
//
// The packed image of q: strips of 64 output channels, in them tiles of 64 input channels, 2048 bytes each. Thread
// 32 b + 4 g + t of 128 has 16 bytes of a tile, word j of which is its A operand of m16n8k16 (or wgmma) for input
// channels 16 j .. 16 j + 15: the nibbles at bits 4 i and 4 i + 16 are register i. Row 8 h + g of block b is channel
// 16 b + 2 g + h of the strip, so that a lane's two channels are neighbours and a warp's stores whole sectors.
#pragma once

#include <cstdint>

#include "common/divisor.h"
#include "common/dtype.h"

namespace jax_baracuda {

inline constexpr int kStrip = 64;  // output channels
inline constexpr int kDepth = 64;  // input channels of a tile
inline constexpr int kTileBytes = kStrip * kDepth / 2;

struct Int4Shape {
  DType dtype;
  int64_t rows;     // M
  int columns;      // K, of x: a multiple of 8; input channels past it count as zeros of x
  int channels;     // OC
  int strips;       // of 64 output channels
  int depth_tiles;  // of 64 input channels
  int group_size;   // 32 or a multiple of 64
};

struct Int4Params {
  const void* x;          // [rows, columns]
  const uint8_t* packed;  // [strips, depth_tiles, kTileBytes]
  const void* scales;     // [groups, strips * 64], like x
  const uint8_t* zeros;   // [groups, strips * 64]
  const void* bias;       // [channels] or null
  void* out;              // [rows, channels]
  float* partials;  // [splits, rows, strips * 64]; null: the CTAs of a cluster add up their parts

  int rows, columns, channels, strips, depth_tiles;
  Divisor group_tiles;  // tiles of a group of 64 or more input channels
  // Of the depth, in units of two tiles (small.cuh) or one (large.cuh): so many a split, and one more in the first ones.
  int splits;
  int split_units, longer_splits;  // longer_splits one more

  void set_splits(int count, int units) {
    splits = count;
    split_units = units / count;
    longer_splits = units % count;
  }
};

}  // namespace jax_baracuda
