// Gradients on their way out: dQ to the sum in global memory, dK and dV from shared memory to their
// rows.
#pragma once

#include "attention/backward/params.h"
#include "attention/sequence.cuh"
#include "device/memory.cuh"
#include "device/product.cuh"

namespace jax_baracuda {

// Adds a lane's part of rows of dQ to their sum. `to` is where its first row and columns are, `stride`
// (of rows) is in elements. kWhole: no row or column is one too many.
template <bool kWhole, int kM, int kN>
__device__ __forceinline__ void add_to_query_sum(float* to, int stride, int rows_left,
                                                 int cols_left, const Accumulator<kM, kN>& dq) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (kWhole || 16 * m + 8 * half < rows_left)
#pragma unroll
        for (int n = 0; n < kN; n += 2)
          if (kWhole || 8 * n < cols_left)
            add_global_float4(to + 8 * n, dq[m][n][2 * half], dq[m][n][2 * half + 1],
                              dq[m][n + 1][2 * half], dq[m][n + 1][2 * half + 1]);
      to += static_cast<int64_t>(8) * stride;
    }
}

// Writes a tile to rows [first, ...) of `to`, up to `rows`; zeros from row `counted` on.
template <int kThreads, class TileT, class T>
__device__ __forceinline__ void store_rows(const TileT& tile, T* to, int64_t stride, int first,
                                           int rows, int counted, int cols, bool vector) {
  for (int index = threadIdx.x; index < TileT::kRows * TileT::kPieces; index += kThreads) {
    const int row = index / TileT::kPieces, piece = index % TileT::kPieces;
    const int col = piece * TileT::kPieceElements;
    if (first + row >= rows || col >= cols) continue;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (first + row < counted) value = load_shared_16(tile.piece(row, piece));
    T* at = to + (first + row) * stride + col;
    if (vector) {
      *reinterpret_cast<uint4*>(at) = value;
    } else {
      const T* elements = reinterpret_cast<const T*>(&value);
#pragma unroll
      for (int i = 0; i < TileT::kPieceElements; ++i)
        if (col + i < cols) at[i] = elements[i];
    }
  }
}

}  // namespace jax_baracuda
