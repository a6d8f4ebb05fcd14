// Gradients on their way out of a warp's registers.
#pragma once

#include "attention/hopper/backward/traits.cuh"
#include "attention/hopper/epilogue.cuh"
#include "device/bulk.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

// 16 rows that a warp has in accumulators, 16 bytes a lane. `to`: the first of them. Rows from `counted` on are zeros, those from
// `rows` on are not written.
template <class T, int kColumns>
__device__ __forceinline__ void store_rows_of_warp(T* to, int64_t stride, int rows, int counted,
                                                   int dim, const float (&d)[kColumns / 2],
                                                   float scale, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
#pragma unroll
    for (int c = 0; c < kColumns / 8; c += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* at = d + (c + i) * 4 + 2 * half;
        words[i] = row < counted ? pack_pair<T>(at[0] * scale, at[1] * scale) : 0;
      }
      transpose_quad(words, lane);
      const int column = 8 * (c + lane % 4);
      if (row < rows && column < dim)
        *reinterpret_cast<uint4*>(to + row * stride + column) =
            make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

// Where 16 bytes of one of 16 rows of kColumns lie in shared memory. 8 pieces of a row, and the same one of 8 rows, are in
// different banks.
template <int kColumns>
__device__ __forceinline__ int place_in_rows(int row, int piece) {
  const int swizzle = kColumns % 64 == 0 ? row % 8 : row / 2 % 4;
  return row * (kColumns * 2) + (piece ^ swizzle) * 16;
}
// store_rows_of_warp() by way of shared memory, the warp's own, at `shared`: it writes rows as a whole, and is less code.
template <class T, int kColumns>
__device__ __forceinline__ void store_rows_through(uint32_t shared, T* to, int64_t stride, int rows,
                                                   int counted, int dim,
                                                   const float (&d)[kColumns / 2], float scale,
                                                   int lane) {
#pragma unroll
  for (int n = 0; n < kColumns / 8; n += 2) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      words[i] = pack_pair<T>(d[4 * n + 2 * i] * scale, d[4 * n + 2 * i + 1] * scale);
    store_matrices(shared + place_in_rows<kColumns>(lane % 16, n + lane / 16), words);
  }
  __syncwarp();
  constexpr int kPieces = kColumns / 8;  // of a row
#pragma unroll 2
  for (int i = lane; i < 16 * kPieces; i += 32) {
    const int row = i / kPieces, piece = i % kPieces;
    const uint4 x = load_shared_16(shared + place_in_rows<kColumns>(row, piece));
    if (row < rows && piece * 8 < dim)
      *reinterpret_cast<uint4*>(to + row * stride + piece * 8) =
          row < counted ? x : make_uint4(0, 0, 0, 0);
  }
  __syncwarp();
}

// A warp's part of dQ to its place in shared memory, each register of four next to those of the other lanes.
template <int kRegisters>
__device__ __forceinline__ void store_query_sum(uint32_t to, const float (&dq)[kRegisters],
                                                int lane) {
#pragma unroll
  for (int i = 0; i < kRegisters; i += 4)
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"r"(to + i * 128 + lane * 16),
                 "f"(dq[i]), "f"(dq[i + 1]), "f"(dq[i + 2]), "f"(dq[i + 3])
                 : "memory");
}

}  // namespace jax_baracuda
