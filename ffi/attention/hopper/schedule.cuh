// Which tiles a CTA takes.
#pragma once

#include "attention/hopper/params.h"

namespace jax_baracuda {

// The tiles of a CTA: the first by its number, the others either from a counter that all CTAs share, so that a CTA that is
// done early takes more, or one of each round of gridDim.x tiles. A warp walks together.
struct TileWalk {
  const TileOrder& order;
  int round = 0;
  int upcoming = blockIdx.x;  // of lane 0

  __device__ __forceinline__ explicit TileWalk(const TileOrder& order) : order(order) {}

  // Finds the next tile; false if there is none.
  __device__ __forceinline__ bool next(int* row, int* tile) {
    const int ctas = gridDim.x;
    int place;
    if (order.counter) {
      place = __shfl_sync(0xffffffffu, upcoming, 0);
      // Asked for long before it is needed.
      if (place < order.tiles * order.rows && threadIdx.x % 32 == 0) upcoming = ctas + atomicAdd(order.counter, 1);
    } else {
      const bool backwards = order.snake && (round & 1);
      place = round * ctas + (backwards ? ctas - 1 - blockIdx.x : blockIdx.x);
      ++round;
    }
    if (place >= order.tiles * order.rows) return false;
    const int section = place / (order.section * order.tiles);
    const int in_section = place - section * order.section * order.tiles;
    const int first = section * order.section;
    const int rows = min(order.section, order.rows - first);
    *tile = order.tiles - 1 - in_section / rows;
    *row = first + in_section % rows;
    return true;
  }
};

}  // namespace jax_baracuda
