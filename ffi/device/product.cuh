// A warp's block of a matrix product.
#pragma once

#include "device/fragment.cuh"

namespace jax_baracuda {

// kM blocks of 16 rows by kN blocks of 8 columns.
template <int kM, int kN>
using Accumulator = float[kM][kN][4];

template <int kM, int kN>
__device__ __forceinline__ void clear(Accumulator<kM, kN>& c) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) c[m][n][e] = 0.0f;
}

// c += A B over a depth of kDepth. load_a(row, k) and load_b(column, k) give operands at offsets of the block. An
// operand is asked for one step before its products: a read of shared memory takes as long as several of them. kAhead:
// A too, which has no point where it lies in registers.
template <class T, int kDepth, bool kAhead = true, int kM, int kN, class LoadA, class LoadB>
__device__ __forceinline__ void multiply_add(Accumulator<kM, kN>& c, const LoadA& load_a,
                                             const LoadB& load_b) {
  static_assert(kN % 2 == 0, "columns come in pairs of blocks");
  using M = Mma<T>;
  constexpr int kUnroll =
      sizeof(T) == 4 ? 2 : kDepth / M::kK;  // three times the products, unrolled less
  typename M::A a[kM], next_a[kM];
  typename M::B2 b = load_b(0, 0), next_b = b;
#pragma unroll
  for (int m = 0; m < kM; ++m) a[m] = load_a(16 * m, 0);
#pragma unroll kUnroll
  for (int k = 0; k < kDepth; k += M::kK) {
    const bool more = k + M::kK < kDepth;
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      const bool last = n + 2 >= kN;
      if (!last) {
        next_b = load_b(8 * (n + 2), k);
      } else if (more) {
        next_b = load_b(0, k + M::kK);
        if (kAhead)
#pragma unroll
          for (int m = 0; m < kM; ++m) next_a[m] = load_a(16 * m, k + M::kK);
      }
#pragma unroll
      for (int m = 0; m < kM; ++m) M::multiply(&c[m][n], a[m], b);
      b = next_b;
    }
    if (more)
#pragma unroll
      for (int m = 0; m < kM; ++m) a[m] = kAhead ? next_a[m] : load_a(16 * m, k + M::kK);
  }
}

// Rounds to T and writes to rows [row, ...) and columns [column, ...) of a tile.
template <class T, int kM, int kN, class TileT>
__device__ __forceinline__ void store_tile(const TileT& tile, int row, int column,
                                           const Accumulator<kM, kN>& c, int lane) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n) Mma<T>::store(tile, row + 16 * m, column + 8 * n, c[m][n], lane);
}

}  // namespace jax_baracuda
