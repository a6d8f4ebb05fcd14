// In which order a block of keys goes over its query rows.
#pragma once

#include "attention/backward/walk.cuh"

namespace jax_baracuda {

// A Walk that may begin with the last rows. Each block of rows is visited for every head of the group before the next one:
// so all blocks of keys meet (rows, head) in one order, and one behind another never has to wait for a longer one to end
// a head.
template <int kKeys, int kRows>
struct RowWalk : Walk<kKeys, kRows> {
  using Base = Walk<kKeys, kRows>;
  using typename Base::Place;
  static_assert(Base::kUnit == kRows);

  bool backward;

  RowWalk() = default;
  __device__ __forceinline__ RowWalk(const AttentionProblem& p, const Sequence& s, int block,
                                     bool backward)
      : Base(p, s, block), backward(backward) {}

  __device__ __forceinline__ bool at_end(Place at) const {
    return at.row < this->begin || at.row >= this->end;
  }
  __device__ __forceinline__ Place first() const {
    return settle({0, backward ? this->end - kRows : this->begin});
  }
  __device__ __forceinline__ Place after(Place at) const {
    if (++at.head < this->group) return at;
    return settle({0, at.row + step()});
  }

 private:
  __device__ __forceinline__ int step() const { return backward ? -kRows : kRows; }
  // The first place from `at` on that segments do not rule out.
  __device__ __forceinline__ Place settle(Place at) const {
    while (!at_end(at) && this->overlap(this->block, at.row) == Overlap::kNone) at.row += step();
    return at;
  }
};

}  // namespace jax_baracuda
