// Output rows: registers -> shared memory -> global memory, 16 bytes a lane.
#pragma once

#include "attention/params.h"
#include "device/fragment.cuh"
#include "device/math.cuh"

namespace jax_baracuda {

// Copies rows [0, rows) of a warp's part of a tile, which starts at tile row `first`, to `to`.
template <class T, class TileT>
__device__ __forceinline__ void store_rows(const TileT& tile, int first, T* to, int64_t stride,
                                           int rows, int cols, bool vector, int lane) {
  for (int index = lane; index < rows * TileT::kPieces; index += 32) {
    const int row = index / TileT::kPieces, piece = index % TileT::kPieces;
    const int col = piece * TileT::kPieceElements;
    if (col >= cols) continue;
    const uint4 value = load_shared_16(tile.piece(first + row, piece));
    T* at = to + row * stride + col;
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

// The LSE of a row, counted within its pack.
__device__ __forceinline__ float* lse_of(const ForwardParams& p, int pack, int head, int64_t row) {
  return p.lse + static_cast<int64_t>(pack) * p.heads * p.q_rows + head * p.lse_head_stride +
         row * p.lse_row_stride;
}

// Zeros and -inf: rows [begin, end) of a pack's head, which see no key. `thread` is one of `threads` at work.
template <class T>
__device__ void store_no_attention(const ForwardParams& p, int pack, int head, int64_t begin,
                                   int64_t end, int thread, int threads) {
  T* out = static_cast<T*>(p.out);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = (static_cast<int64_t>(pack) * p.q_rows + row) * p.heads + head;
    for (int col = thread; col < p.dim_v; col += threads) out[at * p.dim_v + col] = T(0.0f);
    if (thread == 0) *lse_of(p, pack, head, row) = negative_infinity();
  }
}

}  // namespace jax_baracuda
