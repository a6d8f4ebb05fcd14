// A warp's 16 output rows from registers to global memory, 16 bytes a lane, and their LSE.
#pragma once

#include "attention/forward/epilogue.cuh"
#include "attention/forward/softmax.cuh"
#include "attention/hopper/traits.cuh"
#include "device/bulk.cuh"
#include "device/memory.cuh"

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

// A row of the output: within the sequence, and its head. Rows of a tile that are none of the sequence's are not there.
struct OutputRow {
  int row, head;
  bool there;
};

// What a lane's two rows of the output are multiplied with, 0 for rows that see no key; writes their LSE. row_at(half) is
// the OutputRow; sinks has a logit a head or is null; lse_at(row) is where its LSE goes.
template <class RowAt, class LseAt>
__device__ __forceinline__ void finish_rows(const Sequence& sequence, const float* sinks,
                                            OnlineSoftmax<1>& softmax, float scale, int lane,
                                            RowAt row_at, LseAt lse_at, float (&factor)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const OutputRow r = row_at(half);
    float lse;
    factor[half] = softmax.finish(0, half, scale, sinks ? sinks + r.head : nullptr, &lse);
    if (r.row >= sequence.q_len) {
      factor[half] = 0.0f;
      lse = negative_infinity();
    }
    if (lane % 4 == 0 && r.there) *lse_at(r) = lse;
  }
}

// Where a row of the output starts.
__device__ __forceinline__ int64_t output_at(const ForwardParams& p, const Sequence& sequence,
                                             const OutputRow& r) {
  return ((sequence.q_first + r.row) * p.heads + r.head) * static_cast<int64_t>(p.dim_v);
}

template <class T, int kDimV, class RowAt>
__device__ __forceinline__ void store_rows(const ForwardParams& p, const Sequence& sequence,
                                           RowAt row_at, const float (&out)[kDimV / 8][4],
                                           const float (&factor)[2], int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const OutputRow r = row_at(half);
    T* to = static_cast<T*>(p.out) + output_at(p, sequence, r);
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
      if (r.there && column < p.dim_v)
        *reinterpret_cast<uint4*>(to + column) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

// A warp's 16 rows, of which `rows` are there, through its part of shared memory: 64 columns at a time, 128 bytes a row, whose
// 16-byte pieces are exchanged by row against bank conflicts. `to`: where row 0 starts.
template <class T, int kDimV>
__device__ __forceinline__ void store_rows_staged(uint32_t staging, T* to, int64_t stride, int rows,
                                                  int dim_v, const float (&out)[kDimV / 8][4],
                                                  const float (&factor)[2], int lane) {
  static_assert(kDimV % 64 == 0);
  const int piece = lane % 8, row = lane / 8;  // of four rows that a warp reads at once
  to += row * stride + 8 * piece;
#pragma unroll
  for (int first = 0; first < kDimV / 8; first += 8) {
    __syncwarp();
#pragma unroll
    for (int c = 0; c < 8; c += 2) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int half = i % 2;
        const float (&pair)[4] = out[first + c + i / 2];
        words[i] = pack_pair<T>(pair[2 * half] * factor[half], pair[2 * half + 1] * factor[half]);
        if (factor[half] == 0.0f) words[i] = 0;  // what padding left may be NaN
      }
      store_matrices(staging + lane % 16 * 128 + ((c + lane / 16) ^ piece) * 16, words);
    }
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 16; r += 4) {
      const uint4 words = load_shared_16(staging + (r + row) * 128 + (piece ^ (r + row) % 8) * 16);
      if (r + row < rows && 8 * (first + piece) < dim_v)
        *reinterpret_cast<uint4*>(to + r * stride + 8 * first) = words;
    }
  }
}

// The same in float32, for one split of the keys: `to` is where the split's output of all rows starts. Rows that saw no
// key are left out.
template <int kDimV, class RowAt>
__device__ __forceinline__ void store_split_rows(const ForwardParams& p, const Sequence& sequence,
                                                 float* to, RowAt row_at,
                                                 const float (&out)[kDimV / 8][4],
                                                 const float (&factor)[2], int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const OutputRow r = row_at(half);
    if (!r.there || factor[half] == 0.0f) continue;
    float* row = to + output_at(p, sequence, r);
#pragma unroll
    for (int c = 0; c < kDimV / 8; ++c) {
      const int column = 8 * c + 2 * (lane % 4);
      if (column < p.dim_v)
        *reinterpret_cast<float2*>(row + column) =
            make_float2(out[c][2 * half] * factor[half], out[c][2 * half + 1] * factor[half]);
    }
  }
}

}  // namespace jax_baracuda
