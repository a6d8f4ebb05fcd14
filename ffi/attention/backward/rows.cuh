// Rows of the operands on their way to shared memory.
#pragma once

#include "attention/backward/params.h"
#include "attention/sequence.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

__device__ __forceinline__ int64_t wide_product(int a, int b) {
  return static_cast<int64_t>(a) * b;
}

// Where the rows of a sequence begin for a key/value head and the first query head of its group.
// All others are a product of 32-bit numbers away.
template <class T>
struct GroupRows {
  const T *query, *dout, *key, *value;
  const float* stats[2];  // LSE in base 2, delta
  float* dq_sum;

  GroupRows() = default;
  __device__ __forceinline__ GroupRows(const BackwardParams& p, const Sequence& s, int kv_head) {
    const int head = kv_head * p.group;
    const int64_t q_row = s.q_first * p.heads + head;
    const int64_t k_row = s.k_first * p.kv_heads + kv_head;
    query = static_cast<const T*>(p.query) + q_row * p.dim;
    dout = static_cast<const T*>(p.dout) + q_row * p.dim_v;
    key = static_cast<const T*>(p.key) + k_row * p.dim;
    value = static_cast<const T*>(p.value) + k_row * p.dim_v;
    const int64_t pack_row = s.q_first - static_cast<int64_t>(s.pack) * p.q_rows;
    const int64_t stat = (static_cast<int64_t>(s.pack) * p.heads + head) * p.q_rows + pack_row;
    stats[0] = p.lse2 + stat;
    stats[1] = p.delta + stat;
    dq_sum = p.dq_sum + q_row * p.dq_width;
  }
};

// Copies rows [first, ...) of `data` to the tile, zeros from row `rows` and column `cols` on. A row
// and the next are heads * cols elements apart. `vector`: rows are whole 16-byte pieces, which
// kVector promises.
template <int kThreads, bool kVector, class TileT, class T>
__device__ __forceinline__ void copy_rows(const TileT& tile, const T* data, int heads, int first,
                                          int rows, int cols, bool vector) {
  // Neighbours take pieces of a row, and each thread all pieces kAcross from its first: so it keeps
  // its swizzle and has few addresses.
  constexpr int kElements = TileT::kPieceElements;
  constexpr int kAcross = TileT::kPieces % 8 == 0 ? 8 : 4, kDown = kThreads / kAcross;
  static_assert(TileT::kRows % kDown == 0 && kDown % 8 == 0);
  const int row = threadIdx.x / kAcross, piece = threadIdx.x % kAcross;
  const int stride = heads * cols * static_cast<int>(sizeof(T));
  const char* from =
      reinterpret_cast<const char*>(data) + wide_product(first + row, stride) + piece * 16;
  const int rows_left = rows - first - row, cols_left = cols - piece * kElements;
  if (kVector || vector) {
#pragma unroll
    for (int r = 0; r < TileT::kRows; r += kDown) {
#pragma unroll
      for (int c = 0; c < TileT::kPieces; c += kAcross)
        copy_async_16(tile.piece(row, piece) + tile.piece(r, c) - tile.base, from + c * 16,
                      r < rows_left && c * kElements < cols_left);
      from += wide_product(kDown, stride);
    }
    return;
  }
  for (int r = 0; r < TileT::kRows; r += kDown) {
    for (int c = 0; c < TileT::kPieces; c += kAcross) {
      alignas(16) T values[kElements];
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        const bool valid = r < rows_left && c * kElements + i < cols_left;
        values[i] = valid ? reinterpret_cast<const T*>(from + c * 16)[i] : T(0.0f);
      }
      store_shared_16(tile.piece(row + r, piece + c), *reinterpret_cast<const uint4*>(values));
    }
    from += wide_product(kDown, stride);
  }
}

// Statistics of rows in shared memory: those that a lane has of 16 rows lie together.
__device__ __forceinline__ int stats_place(int row) {
  return (row & ~15) + (row >> 1 & 3) * 4 + (row >> 3 & 1) * 2 + (row & 1);
}

// Copies the statistics of rows [first, ...), kRows of LSE and kRows of delta, zeros from row
// `rows` on.
template <int kThreads, int kRows, class T>
__device__ __forceinline__ void copy_stats(uint32_t to, const GroupRows<T>& group, int64_t head_at,
                                           int first, int rows) {
  static_assert(2 * kRows <= kThreads);
  const int which = threadIdx.x / kRows, row = threadIdx.x % kRows;
  if (which < 2)
    copy_async_4(to + (which * kRows + stats_place(row)) * 4,
                 group.stats[which] + head_at + (first + row), first + row < rows);
}

}  // namespace jax_baracuda
