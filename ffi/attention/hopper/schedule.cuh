// Which tiles a CTA takes.
#pragma once

#include "attention/hopper/params.h"
#include "attention/sequence.cuh"

namespace jax_baracuda {

// The places of a CTA in an order: one by its number, then whatever the counter gives, so that a CTA that is done early
// takes more. A warp walks together.
class PlaceWalk {
 public:
  __device__ __forceinline__ explicit PlaceWalk(int* counter)
      : counter_(counter), taken_(blockIdx.x - gridDim.x) {}

  // The next place; asks for it unless that has been done.
  __device__ __forceinline__ int next() {
    if (threadIdx.x % 32 == 0 && taken_ == kUnasked) ask();
    const int place = __shfl_sync(0xffffffffu, taken_, 0) + gridDim.x;
    taken_ = kUnasked;
    return place;
  }
  // Asks for the next place, once between two calls of next(), which alone may look at the answer. An increment that wraps at
  // 2^31 and no addition: of one of those ptxas makes one for the warp, whose lanes wait for the answer on the spot.
  __device__ __forceinline__ void ask() {
    if (threadIdx.x % 32 != 0) return;
    taken_ = kNone;
    if (counter_)
      asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], 0x7fffffff;\n"
                   : "=r"(taken_)
                   : "l"(counter_)
                   : "memory");
  }

 private:
  static constexpr int kNone = 1 << 30;  // there are fewer tiles
  static constexpr int kUnasked = -kNone;

  int* counter_;
  int taken_;  // of lane 0: how many before, beyond one a CTA
};

// The tiles of a CTA.
class TileWalk {
 public:
  __device__ __forceinline__ explicit TileWalk(const TileOrder& order)
      : order_(order), walk_(order.counter) {}

  // Finds the next tile; false if there is none.
  __device__ __forceinline__ bool next(int* row, int* tile) {
    const int place = walk_.next();
    if (place >= order_.tiles * order_.rows) return false;
    const int section = place / (order_.section * order_.tiles);
    const int in_section = place - section * order_.section * order_.tiles;
    const int first = section * order_.section;
    const int rows = min(order_.section, order_.rows - first);
    *tile = order_.tiles - 1 - in_section / rows;
    *row = first + in_section % rows;
    return true;
  }
  // Asks for the one after it, when nearly all of this one has been loaded: a CTA that asks as it begins with a long tile gets the
  // next one, and others have nothing to do at the end.
  __device__ __forceinline__ void ask() { walk_.ask(); }

 private:
  const TileOrder& order_;
  PlaceWalk walk_;
};

// The same for packed sequences of any lengths: one after the other, of each the last tiles of all heads first. A warp adds
// up the tiles of 32 sequences at a time, so that those without rows cost nothing.
class SequenceWalk {
 public:
  // `rows` of a tile; `heads`: groups of them that share one.
  __device__ __forceinline__ SequenceWalk(const ForwardParams& p, int* counter, int rows, int heads)
      : p_(p), rows_(rows), heads_(heads), walk_(counter) {
    add_up();
  }

  __device__ __forceinline__ bool next(int* index, int* head, int* tile) {
    const unsigned place = walk_.next();
    while (place - before_ >= __shfl_sync(kAll, end_, 31)) {
      before_ += __shfl_sync(kAll, end_, 31);
      first_ += 32;
      if (first_ >= p_.sequences) return false;
      add_up();
    }
    const int owner = __ffs(__ballot_sync(kAll, place - before_ < end_)) - 1;
    const unsigned to_end = __shfl_sync(kAll, end_, owner) - 1 - (place - before_);
    *index = first_ + owner;
    *head = to_end % heads_;
    *tile = to_end / heads_;
    return true;
  }
  __device__ __forceinline__ void ask() { walk_.ask(); }

 private:
  static constexpr unsigned kAll = 0xffffffffu;

  __device__ __forceinline__ void add_up() {
    const int lane = threadIdx.x % 32, index = first_ + lane;
    end_ = 0;
    if (index < p_.sequences) end_ = (packed_rows(p_, index).count + rows_ - 1) / rows_ * heads_;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const unsigned other = __shfl_up_sync(kAll, end_, step);
      if (lane >= step) end_ += other;
    }
  }

  const ForwardParams& p_;
  int rows_, heads_;
  PlaceWalk walk_;
  int first_ = 0;  // sequence of lane 0
  unsigned before_ = 0,
           end_;  // tiles: before that sequence; from there up to the end of this lane's
};

}  // namespace jax_baracuda
