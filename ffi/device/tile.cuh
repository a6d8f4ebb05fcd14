// A matrix tile in shared memory: rows of kCols elements, 16-byte pieces swizzled so that eight rows of one
// piece column lie in different banks.
#pragma once

#include <cstdint>

#include "device/memory.cuh"

namespace jax_baracuda {

template <class T, int kRows_, int kCols_>
struct Tile {
  static constexpr int kRows = kRows_, kCols = kCols_;
  static constexpr int kPieceElements = 16 / sizeof(T);
  static constexpr int kPieces = kCols / kPieceElements;  // of a row
  static constexpr int kBytes = kRows * kCols * sizeof(T);
  static_assert(kPieces % 4 == 0, "a row is a multiple of 64 bytes");

  uint32_t base;  // shared address

  __device__ __forceinline__ explicit Tile(uint32_t address) : base(address) {}

  // Whole rows of 128 bytes start in the same bank; rows of 64 (192, ...) alternate between two halves.
  static __device__ __forceinline__ int swizzle(int row) {
    return kPieces % 8 == 0 ? row & 7 : (row >> 1) & 3;
  }
  __device__ __forceinline__ uint32_t piece(int row, int piece) const {
    return base + (row * kPieces + (piece ^ swizzle(row))) * 16;
  }
  __device__ __forceinline__ uint32_t element(int row, int col) const {
    return piece(row, col / kPieceElements) + (col % kPieceElements) * sizeof(T);
  }

  // piece(row + lane_row, column + lane_piece) for a row that is a multiple of 8, an even column and a lane_piece of
  // 0 or 1: what depends on the lane is the same for all of them, the rest is an exclusive or and a constant.
  __device__ __forceinline__ uint32_t piece_of_lane(int row, int column, int lane_row,
                                                    int lane_piece) const {
    constexpr int kSwizzled = kPieces % 8 == 0 ? 7 : 3;
    const uint32_t lane =
        base + lane_row * (kPieces * 16) + ((lane_piece ^ swizzle(lane_row)) << 4);
    return (lane ^ ((column & kSwizzled) << 4)) + (column & ~kSwizzled) * 16 + row * (kPieces * 16);
  }
};

// Rows of a matrix in global memory, as many as count and as wide as they are.
template <class T>
struct GlobalRows {
  const T* data;
  int64_t stride;  // elements from row to row
  int rows, cols;
  bool vector;  // rows are whole, aligned 16-byte pieces
};

// Copies rows [first, first + Tile::kRows) to the tile, zeros where there are none. The caller commits and
// waits; element-wise copies are plain stores, which the same barrier makes visible. kVector: `from.vector` is known.
template <int kThreads, bool kVector = false, class T, int kRows, int kCols>
__device__ __forceinline__ void load_tile(Tile<T, kRows, kCols> tile, const GlobalRows<T>& from,
                                          int first, int thread) {
  using TileT = Tile<T, kRows, kCols>;
  constexpr int kCount = kRows * TileT::kPieces;
  if (kVector || from.vector) {
    if constexpr (kThreads % TileT::kPieces == 0 && kThreads / TileT::kPieces % 8 == 0) {
      // A thread keeps its column of pieces, and its swizzle.
      constexpr int kStep = kThreads / TileT::kPieces;
      const int row = thread / TileT::kPieces, piece = thread % TileT::kPieces;
      const bool valid = piece * TileT::kPieceElements < from.cols;
      const T* source = from.data + (first + row) * from.stride + piece * TileT::kPieceElements;
      const uint32_t to = tile.piece(row, piece);
      const int rows = valid ? from.rows - first - row : 0;
#pragma unroll
      for (int at = 0; at < kRows; at += kStep) {
        if (kRows % kStep != 0 && at + row >= kRows) break;
        copy_async_16(to + at * TileT::kPieces * 16, at < rows ? source : from.data, at < rows);
        source += kStep * from.stride;
      }
    } else {
#pragma unroll
      for (int at = 0; at < kCount; at += kThreads) {
        const int index = at + thread;
        if (kCount % kThreads != 0 && index >= kCount) break;
        const int row = index / TileT::kPieces, piece = index % TileT::kPieces;
        const int col = piece * TileT::kPieceElements;
        const bool valid = first + row < from.rows && col < from.cols;
        const T* source = valid ? from.data + (first + row) * from.stride + col : from.data;
        copy_async_16(tile.piece(row, piece), source, valid);
      }
    }
    return;
  }
  for (int index = thread; index < kCount; index += kThreads) {
    const int row = index / TileT::kPieces, piece = index % TileT::kPieces;
    alignas(16) T values[TileT::kPieceElements];
#pragma unroll
    for (int i = 0; i < TileT::kPieceElements; ++i) {
      const int col = piece * TileT::kPieceElements + i;
      const bool valid = first + row < from.rows && col < from.cols;
      values[i] = valid ? from.data[(first + row) * from.stride + col] : T(0.0f);
    }
    store_shared_16(tile.piece(row, piece), *reinterpret_cast<const uint4*>(values));
  }
}

// Rows that lie anywhere in two matrices, at the same places: row i of a tile is row at[i] of each.
template <class T>
struct GatheredRows {
  const T *first, *second;
  const uint32_t*
      at;  // in shared memory; where a row does not count, that of some row that can be read
  int rows, cols;
  bool vector;
};

// load_tile() of rows [0, kRows) of both.
template <int kThreads, bool kVector = false, class T, int kRows, int kCols>
__device__ __forceinline__ void gather_tiles(Tile<T, kRows, kCols> to_first,
                                             Tile<T, kRows, kCols> to_second,
                                             const GatheredRows<T>& from, int thread) {
  using TileT = Tile<T, kRows, kCols>;
  constexpr int kCount = kRows * TileT::kPieces;
  constexpr bool kKeepsColumn = kThreads % TileT::kPieces == 0;
  const int own_row = thread / TileT::kPieces, own_piece = thread % TileT::kPieces;
  const uint32_t other = to_second.base - to_first.base;
#pragma unroll
  for (int begin = 0; begin < kCount; begin += kThreads) {
    const int index = begin + thread;
    if (kCount % kThreads != 0 && index >= kCount) break;
    const int row = kKeepsColumn ? begin / TileT::kPieces + own_row : index / TileT::kPieces;
    const int piece = kKeepsColumn ? own_piece : index % TileT::kPieces;
    const int col = piece * TileT::kPieceElements;
    const bool valid = row < from.rows && col < from.cols;
    const uint32_t to = to_first.piece(row, piece);
    const int64_t start = static_cast<int64_t>(from.at[row]) * from.cols;
    if (kVector || from.vector) {
      const int within = col < from.cols ? col : 0;
      copy_async_16(to, from.first + within + start, valid);
      copy_async_16(to + other, from.second + within + start, valid);
    } else {
      alignas(16) T values[2][TileT::kPieceElements];
#pragma unroll
      for (int i = 0; i < TileT::kPieceElements; ++i) {
        const bool there = valid && col + i < from.cols;
        values[0][i] = there ? from.first[start + col + i] : T(0.0f);
        values[1][i] = there ? from.second[start + col + i] : T(0.0f);
      }
      store_shared_16(to, *reinterpret_cast<const uint4*>(values[0]));
      store_shared_16(to + other, *reinterpret_cast<const uint4*>(values[1]));
    }
  }
}

}  // namespace jax_baracuda
