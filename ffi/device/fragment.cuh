// Operands of warp matrix products, from shared memory or from an accumulator, for every element type:
// m16n8k16 for 16-bit floats; for float32 m16n8k8 in TF32, three times, which keeps float32's precision.
//
// Lane (g, t) = (lane / 4, lane % 4) holds rows g, g + 8 of A and C and column g of B. An accumulator c of a
// 16 x 8 block: c[0], c[1] at row g, columns 2t, 2t + 1; c[2], c[3] at row g + 8.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "device/mma.cuh"
#include "device/tile.cuh"

namespace jax_baracuda {

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

template <class T>
struct Mma {
  static constexpr int kK = 16;  // depth of one product
  struct A {
    uint32_t r[4];
  };
  struct B2 {  // two neighbouring 8-column blocks
    uint32_t r[4];
  };

  // A from a tile stored [m][k].
  template <class TileT>
  static __device__ __forceinline__ A load_a(const TileT& tile, int m, int k, int lane) {
    A a;
    load_matrices(a.r, tile.piece_of_lane(m, k / 8, lane & 15, lane >> 4));
    return a;
  }
  // A from a tile stored [k][m].
  template <class TileT>
  static __device__ __forceinline__ A load_a_transposed(const TileT& tile, int m, int k, int lane) {
    A a;
    load_matrices_transposed(
        a.r, tile.piece_of_lane(k, m / 8, (lane >> 4) * 8 + (lane & 7), (lane >> 3) & 1));
    return a;
  }
  // B from a tile stored [n][k].
  template <class TileT>
  static __device__ __forceinline__ B2 load_b(const TileT& tile, int n, int k, int lane) {
    B2 b;
    load_matrices(b.r, tile.piece_of_lane(n, k / 8, (lane >> 4) * 8 + (lane & 7), (lane >> 3) & 1));
    return b;
  }
  // B from a tile stored [k][n].
  template <class TileT>
  static __device__ __forceinline__ B2 load_b_transposed(const TileT& tile, int n, int k,
                                                         int lane) {
    B2 b;
    load_matrices_transposed(
        b.r, tile.piece_of_lane(k, n / 8, ((lane >> 3) & 1) * 8 + (lane & 7), lane >> 4));
    return b;
  }
  // A from accumulators side by side, columns [k, k + kK).
  static __device__ __forceinline__ A from_accumulator(const float (*c)[4], int k) {
    const float* low = c[k / 8];
    const float* high = c[k / 8 + 1];
    return {{pack_floats<T>(low[0], low[1]), pack_floats<T>(low[2], low[3]),
             pack_floats<T>(high[0], high[1]), pack_floats<T>(high[2], high[3])}};
  }
  // c (two neighbouring column blocks) += a b.
  static __device__ __forceinline__ void multiply(float (*c)[4], const A& a, const B2& b) {
    mma_16816<T>(c[0], a.r[0], a.r[1], a.r[2], a.r[3], b.r[0], b.r[1]);
    mma_16816<T>(c[1], a.r[0], a.r[1], a.r[2], a.r[3], b.r[2], b.r[3]);
  }
  // Writes the accumulator of rows [m, m + 16), columns [n, n + 8) to a tile.
  template <class TileT>
  static __device__ __forceinline__ void store(const TileT& tile, int m, int n, const float (&c)[4],
                                               int lane) {
    const int row = m + lane / 4, offset = (lane % 4) * 4;
    store_shared_4(tile.piece(row, n / 8) + offset, pack_floats<T>(c[0], c[1]));
    store_shared_4(tile.piece(row + 8, n / 8) + offset, pack_floats<T>(c[2], c[3]));
  }
};

// A TF32 number is float32 with 10 bits of mantissa. x = high + low to 21 bits; low * low is left out.
struct SplitTf32 {
  uint32_t high, low;
  SplitTf32() = default;
  __device__ __forceinline__ explicit SplitTf32(float x) {
    asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(high) : "f"(x));
    asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(low) : "f"(x - __uint_as_float(high)));
  }
};

// The depth of a product may come in any order that A and B share: slots t, t + 4 hold columns 2t, 2t + 1, so that
// an accumulator is an A operand as it stands and a lane's two elements of a row are neighbours.
template <>
struct Mma<float> {
  static constexpr int kK = 8;
  struct A {
    SplitTf32 r[4];
  };
  struct B2 {
    SplitTf32 r[4];
  };

  // Element (row + lane_row, column + lane_column), lane_column < 8.
  template <class TileT>
  static __device__ __forceinline__ uint32_t at(const TileT& tile, int row, int column,
                                                int lane_row, int lane_column) {
    return tile.piece_of_lane(row, column / 4, lane_row, lane_column / 4) + lane_column % 4 * 4;
  }

  template <class TileT>
  static __device__ __forceinline__ A load_a(const TileT& tile, int m, int k, int lane) {
    const float2 first = load_shared_float2(at(tile, m, k, lane / 4, 2 * (lane % 4)));
    const float2 second = load_shared_float2(at(tile, m + 8, k, lane / 4, 2 * (lane % 4)));
    return {{SplitTf32(first.x), SplitTf32(second.x), SplitTf32(first.y), SplitTf32(second.y)}};
  }
  template <class TileT>
  static __device__ __forceinline__ A load_a_transposed(const TileT& tile, int m, int k, int lane) {
    const int row = 2 * (lane % 4), column = lane / 4;
    return {{SplitTf32(load_shared_float(at(tile, k, m, row, column))),
             SplitTf32(load_shared_float(at(tile, k, m + 8, row, column))),
             SplitTf32(load_shared_float(at(tile, k, m, row + 1, column))),
             SplitTf32(load_shared_float(at(tile, k, m + 8, row + 1, column)))}};
  }
  template <class TileT>
  static __device__ __forceinline__ B2 load_b(const TileT& tile, int n, int k, int lane) {
    const float2 first = load_shared_float2(at(tile, n, k, lane / 4, 2 * (lane % 4)));
    const float2 second = load_shared_float2(at(tile, n + 8, k, lane / 4, 2 * (lane % 4)));
    return {{SplitTf32(first.x), SplitTf32(first.y), SplitTf32(second.x), SplitTf32(second.y)}};
  }
  template <class TileT>
  static __device__ __forceinline__ B2 load_b_transposed(const TileT& tile, int n, int k,
                                                         int lane) {
    const int row = 2 * (lane % 4), column = lane / 4;
    return {{SplitTf32(load_shared_float(at(tile, k, n, row, column))),
             SplitTf32(load_shared_float(at(tile, k, n, row + 1, column))),
             SplitTf32(load_shared_float(at(tile, k, n + 8, row, column))),
             SplitTf32(load_shared_float(at(tile, k, n + 8, row + 1, column)))}};
  }
  static __device__ __forceinline__ A from_accumulator(const float (*c)[4], int k) {
    const float* block = c[k / 8];
    return {{SplitTf32(block[0]), SplitTf32(block[2]), SplitTf32(block[1]), SplitTf32(block[3])}};
  }
  static __device__ __forceinline__ void multiply(float (*c)[4], const A& a, const B2& b) {
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const SplitTf32 b0 = b.r[2 * block], b1 = b.r[2 * block + 1];
      // A sum of its own for these eight terms: the tensor core cuts off where an addition rounds.
      float d[4] = {};
      mma_1688_tf32(d, a.r[0].low, a.r[1].low, a.r[2].low, a.r[3].low, b0.high, b1.high);
      mma_1688_tf32(d, a.r[0].high, a.r[1].high, a.r[2].high, a.r[3].high, b0.low, b1.low);
      mma_1688_tf32(d, a.r[0].high, a.r[1].high, a.r[2].high, a.r[3].high, b0.high, b1.high);
#pragma unroll
      for (int e = 0; e < 4; ++e) c[block][e] += d[e];
    }
  }
  template <class TileT>
  static __device__ __forceinline__ void store(const TileT& tile, int m, int n, const float (&c)[4],
                                               int lane) {
    const int row = m + lane / 4, col = n + 2 * (lane % 4);
    store_shared_float2(tile.element(row, col), make_float2(c[0], c[1]));
    store_shared_float2(tile.element(row + 8, col), make_float2(c[2], c[3]));
  }
};

}  // namespace jax_baracuda
