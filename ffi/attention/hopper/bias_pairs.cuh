// A block of a 16-bit bias, from shared memory to the scores.
#pragma once

#include "attention/forward/softmax.cuh"
#include "device/fragment.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

// The two elements of a word.
template <class T>
__device__ __forceinline__ float2 unpack_pair(uint32_t word);
template <>
__device__ __forceinline__ float2 unpack_pair<__nv_bfloat16>(uint32_t word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
template <>
__device__ __forceinline__ float2 unpack_pair<__half>(uint32_t word) {
  return __half22float2(*reinterpret_cast<const __half2*>(&word));
}

// Bias: how a block lies there, a PanelTile with 64 columns a panel. Matrices of 8 x 8 elements come in the layout of the scores.
template <class Bias>
struct BiasPairs {
  static_assert(Bias::kColumns == 64);
  uint32_t line;  // where the row of the block begins that this lane loads from
  int row, right;

  // row: first of the warp, in the block.
  __device__ __forceinline__ BiasPairs(uint32_t block, int row, int lane)
      : line(block + Bias::row_offset(row + lane % 16)), row(lane % 8), right(lane / 16) {}

  template <class T>
  __device__ __forceinline__ void add(Scores<1, Bias::kDim>& s, float factor) const {
#pragma unroll
    for (int n = 0; n < Bias::kDim / 8; n += 2) {
      uint32_t pairs[4];
      load_matrices(pairs, line + n / 8 * Bias::kPanelBytes + ((n % 8 + right) ^ row) * 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) add_pair<T>(&s[0][n + i / 2][i % 2 * 2], pairs[i], factor);
    }
  }
  template <class T>
  static __device__ __forceinline__ void add_pair(float* s, uint32_t pair, float factor) {
    const float2 bias = unpack_pair<T>(pair);
    s[0] += bias.x * factor;
    s[1] += bias.y * factor;
    // In this order: all pairs at once would take more registers than there are.
    asm volatile("" : "+f"(s[0]), "+f"(s[1]));
  }
};

// The same of float32: Bias has columns of two bytes, so that a panel is one of 32 keys.
template <class Bias>
struct FloatBias {
  static_assert(Bias::kColumns == 64);
  uint32_t line;  // where the first of this lane's rows begins
  int piece, half, row;

  __device__ __forceinline__ FloatBias(uint32_t block, int first_row, int lane)
      : line(block + Bias::row_offset(first_row + lane / 4)),
        piece(lane % 4 / 2),
        half(lane % 2 * 8),
        row(lane / 4) {}

  // A lane's numbers of a panel.
  template <int kN>
  __device__ __forceinline__ void add(Scores<1, kN>& s, int panel, float factor) const {
    // Of two neighbouring rows the same keys lie in the same banks: odd rows read what even ones read two loads later.
    const bool odd = row & 1;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        const uint32_t at = line + panel * Bias::kPanelBytes + Bias::row_offset(4 * e) + half;
        const float2 first = load_shared_float2(at + ((2 * n + piece) ^ row ^ 4 * odd) * 16);
        const float2 second = load_shared_float2(at + ((2 * n + 4 + piece) ^ row ^ 4 * odd) * 16);
        add_pair(&s[0][4 * panel + n][e], odd ? second : first, factor);
        add_pair(&s[0][4 * panel + n + 2][e], odd ? first : second, factor);
      }
  }
  static __device__ __forceinline__ void add_pair(float* at, float2 bias, float factor) {
    at[0] += bias.x * factor;
    at[1] += bias.y * factor;
    asm volatile("" : "+f"(at[0]), "+f"(at[1]));  // in this order, for the registers' sake
  }
};

}  // namespace jax_baracuda
