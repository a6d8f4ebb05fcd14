// Which tiles a CTA takes.
#pragma once

#include "attention/hopper/params.h"
#include "attention/sequence.cuh"

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
    if (threadIdx.x % 32 == 0) next_ = gridDim.x + atomicAdd(order_.counter, 1);
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

// The same for packed sequences of any lengths: one after the other, of each the last tiles of all heads first. A warp adds
// up the tiles of 32 sequences at a time, so that those without rows cost nothing.
template <int kRows>  // of a tile
class SequenceWalk {
 public:
  __device__ __forceinline__ SequenceWalk(const ForwardParams& p, int* counter)
      : p_(p), counter_(counter), next_(blockIdx.x) {
    add_up();
  }

  __device__ __forceinline__ bool next(int* index, int* head, int* tile) {
    const unsigned place = __shfl_sync(kAll, next_, 0);
    // Nonsense in cu_seqlens may make the sums wrap: what comes out then is some tile of some sequence.
    while (place - before_ >= __shfl_sync(kAll, end_, 31)) {
      before_ += __shfl_sync(kAll, end_, 31);
      first_ += 32;
      if (first_ >= p_.sequences) return false;
      add_up();
    }
    if (threadIdx.x % 32 == 0) next_ = gridDim.x + atomicAdd(counter_, 1);
    const unsigned in_group = place - before_;
    const int owner = __ffs(__ballot_sync(kAll, in_group < end_)) - 1;
    const int tiles = __shfl_sync(kAll, tiles_, owner);
    const unsigned in_sequence = in_group - __shfl_sync(kAll, end_, owner) + tiles * p_.heads;
    *index = first_ + owner;
    *head = in_sequence % p_.heads;
    *tile = max(tiles - 1 - static_cast<int>(in_sequence / p_.heads), 0);
    return true;
  }

 private:
  static constexpr unsigned kAll = 0xffffffffu;

  __device__ __forceinline__ void add_up() {
    const int lane = threadIdx.x % 32, index = first_ + lane;
    tiles_ = 0;
    if (index < p_.sequences) tiles_ = (packed_rows(p_, index).count + kRows - 1) / kRows;
    end_ = tiles_ * p_.heads;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const unsigned other = __shfl_up_sync(kAll, end_, step);
      if (lane >= step) end_ += other;
    }
  }

  const ForwardParams& p_;
  int* counter_;
  int next_;       // of lane 0
  int first_ = 0;  // sequence of lane 0
  unsigned before_ = 0,
           end_;  // tiles of all heads: before that sequence; from there up to this lane's
  int tiles_;     // of this lane's sequence and of one head
};

}  // namespace jax_baracuda
