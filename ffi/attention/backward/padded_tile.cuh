// A matrix tile in shared memory with 16 bytes after each row, so that eight rows of one piece column
// lie in different banks: an address is a lane's own and a constant, where a swizzle takes a few
// instructions for each. It has the interface of Tile.
#pragma once

#include <cstdint>

#include "device/product.cuh"

namespace jax_baracuda {

template <class T, int kRows_, int kCols_>
struct PaddedTile {
  static constexpr int kRows = kRows_, kCols = kCols_;
  static constexpr int kPieceElements = 16 / sizeof(T);
  static constexpr int kPieces = kCols / kPieceElements;  // of a row
  static constexpr int kRowBytes = (kPieces + 1) * 16;
  static constexpr int kBytes = kRows * kRowBytes;
  static_assert(kPieces % 2 == 0, "rows an odd number of pieces apart");

  uint32_t base;  // shared address

  __device__ __forceinline__ explicit PaddedTile(uint32_t address) : base(address) {}
  __device__ __forceinline__ uint32_t piece(int row, int piece) const {
    return base + row * kRowBytes + piece * 16;
  }
  __device__ __forceinline__ uint32_t piece_of_lane(int row, int column, int lane_row,
                                                    int lane_piece) const {
    return base + (lane_row * kRowBytes + lane_piece * 16) + (row * kRowBytes + column * 16);
  }
};

// Rounds an accumulator to T and writes it to rows [row, ...) and columns [column, ...) of a tile.
template <class T, int kM, int kN, class TileT>
__device__ __forceinline__ void store_block(const TileT& tile, int row, int column,
                                            const Accumulator<kM, kN>& c, int lane) {
#if __CUDA_ARCH__ >= 900
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        const auto block = Mma<T>::from_accumulator(c[m], 8 * n);
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(
                         tile.piece_of_lane(row + 16 * m, column / 8 + n, lane & 15, lane >> 4)),
                     "r"(block.r[0]), "r"(block.r[1]), "r"(block.r[2]), "r"(block.r[3])
                     : "memory");
      }
    return;
  }
#endif
  store_tile<T>(tile, row, column, c, lane);
}

}  // namespace jax_baracuda
