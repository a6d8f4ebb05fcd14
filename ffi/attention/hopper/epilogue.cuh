// A warp's 16 output rows from registers to global memory, 16 bytes a lane, and their LSE.
#pragma once

#include "attention/forward/softmax.cuh"
#include "attention/hopper/traits.cuh"

namespace jax_baracuda {

template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack_pair<__nv_bfloat16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <>
__device__ __forceinline__ uint32_t pack_pair<__half>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// Transposes 4 x 4 words over the four lanes of a quad: word j of lane t goes to word t of lane j.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool high = lane & bit;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const uint32_t sent = high ? w[i] : w[i | bit];
      const uint32_t got = __shfl_xor_sync(0xffffffffu, sent, bit);
      if (high)
        w[i] = got;
      else
        w[i | bit] = got;
    }
  }
}

// `first_row`: of this warp, within the sequence.
template <class Traits>
__device__ __forceinline__ void store_rows_and_lse(
    const ForwardParams& p, const Sequence& sequence, int head, int first_row,
    OnlineSoftmax<1>& softmax, const float (&out)[Traits::kDimV / 8][4], float scale, int lane) {
  using T = typename Traits::T;
  const float* sink = p.sinks ? p.sinks + sequence.index * p.sinks_stride + head : nullptr;
  const int64_t pack_row = sequence.q_first - static_cast<int64_t>(sequence.pack) * p.q_rows;
  float* lse = p.lse + (static_cast<int64_t>(sequence.pack) * p.heads + head) * p.q_rows + pack_row;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float row_lse;
    float factor = softmax.finish(0, half, scale, sink, &row_lse);
    const int row = first_row + lane / 4 + 8 * half;
    const bool counts = row < sequence.q_len;
    if (!counts) row_lse = negative_infinity();
    if (lane % 4 == 0 && row < sequence.q_rows) lse[row] = row_lse;
    T* to = static_cast<T*>(p.out) +
            ((sequence.q_first + row) * p.heads + head) * static_cast<int64_t>(p.dim_v);
#pragma unroll
    for (int c = 0; c < Traits::kDimV / 8; c += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words[i] = counts && factor != 0.0f ? pack_pair<T>(out[c + i][2 * half] * factor,
                                        out[c + i][2 * half + 1] * factor)
                          : 0;
      transpose_quad(words, lane);
      const int column = 8 * (c + lane % 4);
      if (row < sequence.q_rows && column < p.dim_v)
        *reinterpret_cast<uint4*>(to + column) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

}  // namespace jax_baracuda
