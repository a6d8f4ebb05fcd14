// Which blocks of keys a CTA takes.
#pragma once

#include "attention/hopper/backward/params.h"

namespace jax_baracuda {

// The first tile of a CTA is that of its number; the others come from a counter that all CTAs share or from every
// further gridDim.x-th place. Under a causal mask the first block of keys of a row meets most queries: it comes first.
// A warp walks together.
struct KeyTileWalk {
  const HopperBackwardParams& p;
  int place = -1;
  int upcoming = blockIdx.x;  // of lane 0

  __device__ __forceinline__ explicit KeyTileWalk(const HopperBackwardParams& p) : p(p) {}

  // Finds the next tile; false if there is none.
  __device__ __forceinline__ bool next(int* row, int* tile) {
    const int ctas = gridDim.x, all = p.tiles * p.rows;
    if (p.counter) {
      place = __shfl_sync(0xffffffffu, upcoming, 0);
      // Asked for long before it is needed.
      if (place < all && threadIdx.x % 32 == 0) upcoming = ctas + atomicAdd(p.counter, 1);
    } else {
      place = place < 0 ? blockIdx.x : place + ctas;
    }
    if (place >= all) return false;
    const int before = p.rows - p.last;  // rows
    const int section = place < before * p.tiles ? p.section : max(p.last, 1);
    const int base = place < before * p.tiles ? 0 : before, end = base     ? p.rows
                                                                  : before ? before
                                                                           : p.rows;
    const int index = place - base * p.tiles;
    const int first = base + index / (section * p.tiles) * section;
    const int within = index % (section * p.tiles), rows = min(section, end - first);
    *tile = p.reverse ? p.tiles - 1 - within / rows : within / rows;
    *row = first + within % rows;
    return true;
  }
};

}  // namespace jax_baracuda
