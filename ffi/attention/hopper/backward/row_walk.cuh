// In which order a block of keys goes over its query rows.
#pragma once

#include "attention/backward/walk.cuh"

namespace jax_baracuda {

// Blocks [begin, end) of keys run at the same time, after those before `begin`: from the last one to the first, or from the
// first one on. In this order they add to dQ where that matters.
struct KeyOrder {
  enum Way { kDescending = 1, kBackward = 2 };

  int begin, end;
  int way;  // flags: one register

  __device__ __forceinline__ bool descending() const { return way & kDescending; }
  // Over the query rows.
  __device__ __forceinline__ bool backward() const { return way & kBackward; }
};

// A tile that has been taken.
struct TilePlace {
  int row, tile;
  KeyOrder order;  // of the row's tiles
  int part = -1;   // among the parts of divided tiles, see parts.cuh; -1: all of the tile
};

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

// The same, from any row upwards to the last one, and then from there downwards.
template <int kKeys, int kRows>
struct TurningWalk : RowWalk<kKeys, kRows> {
  using Base = RowWalk<kKeys, kRows>;
  using typename Base::Place;

  int from;

  TurningWalk() = default;
  __device__ __forceinline__ TurningWalk(const AttentionProblem& p, const Sequence& s, int block)
      : Base(p, s, block, false), from(this->begin) {}
  // A row that begins a unit: the last one or one after it is backwards, the first one or one before it forwards.
  __device__ __forceinline__ void set_from(int row) {
    from = min(max(row, this->begin), this->end);
  }

  __device__ __forceinline__ bool at_end(Place at) const { return at.row < this->begin; }
  __device__ __forceinline__ Place first() const {
    return settle({0, from < this->end ? from : from - kRows});
  }
  __device__ __forceinline__ Place after(Place at) const {
    if (++at.head < this->group) return at;
    return settle({0, row_after(at.row)});
  }

 private:
  __device__ __forceinline__ int row_after(int row) const {
    if (row < from) return row - kRows;
    return row + kRows < this->end ? row + kRows : from - kRows;
  }
  __device__ __forceinline__ Place settle(Place at) const {
    while (!at_end(at) && this->overlap(this->block, at.row) == Overlap::kNone)
      at.row = row_after(at.row);
    return at;
  }
};

}  // namespace jax_baracuda
