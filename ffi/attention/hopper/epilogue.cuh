// A warp's 16 output rows from registers to global memory, 16 bytes a lane, and their LSE.
#pragma once

#include "attention/forward/epilogue.cuh"
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

// What a lane's two rows of the output are multiplied with, 0 for rows that see no key; writes their LSE. `first_row`
// is the warp's, within the sequence.
__device__ __forceinline__ void finish_rows(const ForwardParams& p, const Sequence& sequence,
                                            int head, int first_row, OnlineSoftmax<1>& softmax,
                                            float scale, int lane, float (&factor)[2]) {
  const float* sink = p.sinks ? p.sinks + sequence.index * p.sinks_stride + head : nullptr;
  const int64_t pack_row = sequence.q_first - static_cast<int64_t>(sequence.pack) * p.q_rows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float lse;
    factor[half] = softmax.finish(0, half, scale, sink, &lse);
    const int row = first_row + score_row(0, 2 * half, lane);
    if (row >= sequence.q_len) {
      factor[half] = 0.0f;
      lse = negative_infinity();
    }
    if (lane % 4 == 0 && row < sequence.q_rows)
      *lse_of(p, sequence.pack, head, pack_row + row) = lse;
  }
}

template <class T, int kDimV>
__device__ __forceinline__ void store_rows(const ForwardParams& p, const Sequence& sequence,
                                           int head, int first_row,
                                           const float (&out)[kDimV / 8][4],
                                           const float (&factor)[2], int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + score_row(0, 2 * half, lane);
    T* to = static_cast<T*>(p.out) +
            ((sequence.q_first + row) * p.heads + head) * static_cast<int64_t>(p.dim_v);
#pragma unroll
    for (int c = 0; c < kDimV / 8; c += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t pair = pack_pair<T>(out[c + i][2 * half] * factor[half],
                                           out[c + i][2 * half + 1] * factor[half]);
        words[i] = factor[half] == 0.0f ? 0 : pair;  // what padding left may be NaN
      }
      transpose_quad(words, lane);
      const int column = 8 * (c + lane % 4);
      if (row < sequence.q_rows && column < p.dim_v)
        *reinterpret_cast<uint4*>(to + column) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

}  // namespace jax_baracuda
