// The products of the Hopper backward kernels, by a warpgroup, asynchronous: see device/wgmma.cuh. Tiles are PanelTiles.
#pragma once

#include "device/fragment.cuh"
#include "device/mbarrier.cuh"
#include "device/memory.cuh"
#include "device/tma.cuh"
#include "device/wgmma_shared.cuh"

namespace jax_baracuda {

template <class T, int kN, bool kTransposed>
__device__ __forceinline__ void multiply(float (&d)[kN / 2], uint64_t a, uint64_t b, bool begins) {
  if (begins)
    WarpgroupMmaShared<T, kN, kTransposed>::begin(d, a, b);
  else
    WarpgroupMmaShared<T, kN, kTransposed>::add(d, a, b);
}

// d = A B^T or, unless it `begins`, d += A B^T: 64 rows of A, at an address, against all rows of B. Columns are the depth.
template <class T, class A, class B>
__device__ __forceinline__ void multiply_rows(float (&d)[B::kRows / 2], uint32_t a, uint32_t b,
                                              bool begins = true) {
  static_assert(A::kDim == B::kDim);
  const uint64_t from_a = A::descriptor(a), from_b = B::descriptor(b);
#pragma unroll
  for (int column = 0; column < A::kDim; column += 16)
    multiply<T, B::kRows, false>(d, advance(from_a, A::column_offset(column)),
                                 advance(from_b, B::column_offset(column)), begins && column == 0);
}

// The same where the first 16 columns of a warp's rows of A are in registers: they are not read from shared memory again.
template <class T, class A, class B>
__device__ __forceinline__ void multiply_rows(float (&d)[B::kRows / 2], const uint32_t (&held)[4],
                                              uint32_t a, uint32_t b) {
  static_assert(A::kDim == B::kDim);
  const uint64_t from_a = A::descriptor(a), from_b = B::descriptor(b);
  WarpgroupMmaBegin<T, B::kRows>::registers_transposed(d, held, from_b);
#pragma unroll
  for (int column = 16; column < A::kDim; column += 16)
    multiply<T, B::kRows, false>(d, advance(from_a, A::column_offset(column)),
                                 advance(from_b, B::column_offset(column)), false);
}
// Those of 16 rows that begin at an address.
template <class TileT>
__device__ __forceinline__ void hold_first_columns(uint32_t (&held)[4], uint32_t rows, int lane) {
  static_assert(TileT::kColumns == 64, "rows of 128 bytes are swizzled so");
  load_matrices(held, rows + TileT::row_offset(lane % 16) + (lane / 16 ^ lane % 8) * 16);
}

// d += W B, W in registers: of the depth, kDepth rows of B, those from kBegin to kEnd.
template <class T, class B, int kDepth, int kBegin = 0, int kEnd = kDepth>
__device__ __forceinline__ void multiply_weights(float (&d)[B::kDim / 2],
                                                 const uint32_t (&weights)[kDepth / 16][4],
                                                 uint32_t b, int accumulate) {
  const uint64_t from = B::descriptor(b);
#pragma unroll
  for (int row = kBegin; row < kEnd; row += 16)
    WarpgroupMma<T, B::kDim>::registers(d, weights[row / 16], advance(from, B::row_offset(row)),
                                        row > 0 || accumulate);
}

// d = A B or, unless it `begins`, d += A B: kDepth columns of 64 rows of A, rows of kN columns of B.
template <class T, class A, class B, int kN, int kDepth>
__device__ __forceinline__ void multiply_columns(float (&d)[kN / 2], uint32_t a, uint32_t b,
                                                 bool begins) {
  const uint64_t from_a = A::descriptor(a), from_b = B::descriptor(b);
#pragma unroll
  for (int k = 0; k < kDepth; k += 16)
    multiply<T, kN, true>(d, advance(from_a, A::column_offset(k)),
                          advance(from_b, B::row_offset(k)), begins && k == 0);
}

// Zeros to rows [first, ...) of a tile in shared memory, by a warpgroup: they may be NaN, and 0 times that, too.
template <class TileT>
__device__ __forceinline__ void clear_rows(uint32_t tile, int first, int named_barrier) {
  constexpr int kOfPanel = TileT::kColumns / 8, kOfRow = TileT::kDim / 8;  // pieces of 16 bytes
#pragma unroll 1
  for (int i = first * kOfRow + threadIdx.x % 128; i < TileT::kRows * kOfRow; i += 128) {
    const int row = i / kOfRow, panel = i % kOfRow / kOfPanel, piece = i % kOfPanel;
    store_shared_16(tile + panel * TileT::kPanelBytes + TileT::row_offset(row) + piece * 16,
                    make_uint4(0, 0, 0, 0));
  }
  fence_async_shared();
  named_barrier_sync(named_barrier, 128);
}

}  // namespace jax_baracuda
