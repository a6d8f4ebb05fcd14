// Which tiles a CTA takes.
#pragma once

#include "attention/hopper/params.h"

namespace jax_baracuda {

// The tiles of a CTA: one by its number, then whatever the counter gives, so that a CTA that is done early takes more. A
// warp walks together.
class TileWalk {
 public:
  __device__ __forceinline__ explicit TileWalk(const TileOrder& order)
      : order_(order), next_(blockIdx.x) {}

  // Finds the next tile; false if there is none.
  __device__ __forceinline__ bool next(int* row, int* tile) {
    const int place = __shfl_sync(0xffffffffu, next_, 0);
    if (place >= order_.tiles * order_.rows) return false;
    // The answer is needed a tile later: there is time.
    if (threadIdx.x % 32 == 0)
      next_ = order_.counter ? gridDim.x + atomicAdd(order_.counter, 1) : 0x7fffffff;
    const int section = place / (order_.section * order_.tiles);
    const int in_section = place - section * order_.section * order_.tiles;
    const int first = section * order_.section;
    const int rows = min(order_.section, order_.rows - first);
    *tile = order_.tiles - 1 - in_section / rows;
    *row = first + in_section % rows;
    return true;
  }

 private:
  const TileOrder& order_;
  int next_;  // of lane 0
};

}  // namespace jax_baracuda
