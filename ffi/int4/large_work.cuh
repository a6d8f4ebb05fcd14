// What a CTA of large.cuh works on: tiles of the output, and parts of the depth of them.
#pragma once

#include "int4/config.h"
#include "int4/epilogue.cuh"
#include "int4/hopper_params.h"

namespace jax_baracuda {

// Pieces of work one after the other. kPair CTAs take kPair channel blocks next to each other at a time, a tile of the pair:
// the first `whole_tiles` of them each by one pair. The depth of the others, tile after tile, is divided among the pairs:
// sums of a part of a tile go to a slot of the workspace. The row blocks of a section share the weights of a channel block
// while those are in L2.
template <int kPair>
struct LargeWork {
  const HopperParams& p;
  const int pairs, pair;  // of CTAs, or clusters that share the depth
  int at;
  int stream_at = 0, stream_end = 0;  // of the depth of the divided tiles
  int row_block = 0, channel_block = 0, first_tile = 0, end_tile = 0, slot = -1;

  __device__ __forceinline__ LargeWork(const HopperParams& p, int split)
      : p(p),
        pairs(gridDim.x / (kPair * p.problem.splits)),
        pair(blockIdx.x / (kPair * p.problem.splits)),
        at(pair) {
    const Int4Params& problem = p.problem;
    first_tile = split * problem.split_units + min(split, problem.longer_splits);
    end_tile = first_tile + problem.split_units + (split < problem.longer_splits);
    if constexpr (kPair > 1) {
      stream_at = stream_begin(p, pair);
      stream_end = stream_begin(p, pair + 1);
    }
  }

  static __device__ __forceinline__ int stream_begin(const HopperParams& p, int pair) {
    return pair * p.stream_units + min(pair, p.longer_streams);
  }

  __device__ __forceinline__ void place(int tile) {
    const int blocks = (p.channel_blocks + kPair - 1) / kPair;
    const int section = tile / (p.section * blocks), first = section * p.section;
    const int rows = min(p.section, p.row_blocks - first);
    const int within = tile - first * blocks;
    const int block = within / rows;
    channel_block = block * kPair;
    row_block = first + within - block * rows;
  }

  __device__ __forceinline__ bool next() {
    if (at < p.whole_tiles) {
      place(at);
      at += pairs;
      return true;
    }
    if (kPair == 1 || stream_at >= stream_end) return false;
    const int depth = p.problem.depth_tiles, tile = stream_at / depth;
    first_tile = stream_at - tile * depth;
    end_tile = min(depth, first_tile + stream_end - stream_at);
    stream_at += end_tile - first_tile;
    place(p.whole_tiles + tile);
    slot = end_tile - first_tile < depth ? pair + tile : -1;
    return true;
  }
};

// A CTA's sums of a part of the depth, as its threads have them.
template <class Traits>
__device__ __forceinline__ float4* large_part(const Int4Params& p, int place) {
  return reinterpret_cast<float4*>(p.partials) +
         static_cast<int64_t>(place) * (Traits::kN / 8 * Traits::kConsumers);
}

}  // namespace jax_baracuda
