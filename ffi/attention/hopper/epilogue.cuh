// A warp's 16 output rows from registers to global memory, 16 bytes a lane, and their LSE.
#pragma once

#include "attention/forward/epilogue.cuh"
#include "attention/forward/softmax.cuh"
#include "attention/hopper/traits.cuh"
#include "device/bulk.cuh"
#include "device/elect.cuh"
#include "device/memory.cuh"
#include "device/tma.cuh"

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

inline constexpr int kPanelBytes16 = 16 * 128;  // 16 rows of 64 columns

// A row of the output: within the sequence, and its head. Rows of a tile that are none of the sequence's are not there.
struct OutputRow {
  int row, head;
  bool there;
};

// What a lane's two rows of the output are multiplied with, 0 for rows that see no key; writes their LSE. row_at(half) is
// the OutputRow; sinks has a logit a head or is null; lse_at(row) is where its LSE goes. Reciprocal and logarithm are the
// special function unit's: off by 2^-22 of themselves at the most, and the tensor cores wait for them.
template <class RowAt, class LseAt>
__device__ __forceinline__ void finish_rows(const Sequence& sequence, const float* sinks,
                                            const OnlineSoftmax<1>& softmax, float scale, int lane,
                                            RowAt row_at, LseAt lse_at, float (&factor)[2]) {
  float totals[2], tops[2];
  bool seen[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    totals[half] = butterfly_sum<1, 2>(softmax.sum[0][half]);
    tops[half] = softmax.maximum[0][half] * scale;
    seen[half] = totals[half] != 0.0f && row_at(half).row < sequence.q_len;
    factor[half] = 1.0f;
  }
  if (sinks) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float logit = sinks[row_at(half).head] * kLog2E, top = fmaxf(tops[half], logit);
      factor[half] = exp2_approx(tops[half] - top);
      totals[half] = totals[half] * factor[half] + exp2_approx(logit - top);
      tops[half] = top;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const OutputRow r = row_at(half);
    const float lse = (tops[half] + log2_approx(totals[half])) * kLn2;
    factor[half] = seen[half] ? factor[half] * reciprocal_approx(totals[half]) : 0.0f;
    if (lane % 4 == 0 && r.there) *lse_at(r) = seen[half] ? lse : negative_infinity();
  }
}

// Where a row of the output starts.
__device__ __forceinline__ int64_t output_at(const ForwardParams& p, const Sequence& sequence,
                                             const OutputRow& r) {
  return ((sequence.q_first + r.row) * p.heads + r.head) * static_cast<int64_t>(p.dim_v);
}

// Rows that see no key are zero, whatever padding left there: it may be NaN. They are few.
template <int kDimV>
__device__ __forceinline__ void clear_unseen(float (&out)[kDimV / 8][4], const float (&factor)[2]) {
  if (__any_sync(0xffffffffu, factor[0] == 0.0f || factor[1] == 0.0f)) {
#pragma unroll
    for (int c = 0; c < kDimV / 8; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (factor[e / 2] == 0.0f) out[c][e] = 0.0f;
  }
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
        words[i] = pack_pair<T>(out[c + i][2 * half] * factor[half],
                                out[c + i][2 * half + 1] * factor[half]);
      }
      transpose_quad(words, lane);
      const int column = 8 * (c + lane % 4);
      if (r.there && column < p.dim_v)
        *reinterpret_cast<uint4*>(to + column) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

// A warp's 16 rows to its part of shared memory, panels of 64 columns with the 128-byte swizzle, from which the copy engine
// has taken what was there before.
template <class T, int kDimV>
__device__ __forceinline__ void stage_rows(uint32_t staging, const float (&out)[kDimV / 8][4],
                                           const float (&factor)[2], int lane) {
  static_assert(kDimV % 64 == 0);
  if (elect_lane()) bulk_wait_read();
  __syncwarp();
#pragma unroll
  for (int c = 0; c < kDimV / 8; c += 2) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int half = i % 2;
      const float (&pair)[4] = out[c + i / 2];
      words[i] = pack_pair<T>(pair[2 * half] * factor[half], pair[2 * half + 1] * factor[half]);
    }
    store_matrices(
        staging + c / 8 * kPanelBytes16 + lane % 16 * 128 + ((c % 8 + lane / 16) ^ lane % 8) * 16,
        words);
  }
}

// From there to global memory by the copy engine, all 16 that are within the array. first: column of the output.
template <int kDimV>
__device__ __forceinline__ void store_staged_rows(uint32_t staging, const CUtensorMap& map,
                                                  int first, int row, int head, int pack) {
  fence_async_shared();
  __syncwarp();
  if (elect_lane()) {
#pragma unroll
    for (int column = 0; column < kDimV; column += 64)
      tma_store(&map, staging + column / 64 * kPanelBytes16, first + column, row, head, pack);
    bulk_commit();
  }
}

// The same by the warp itself, where another sequence's rows follow after `rows`; `to`: where row 0 starts, whose columns
// end after dim_v.
template <class T, int kDimV>
__device__ __forceinline__ void store_staged_rows(uint32_t staging, T* to, int64_t stride, int rows,
                                                  int dim_v, int lane) {
  __syncwarp();
  for (int at = lane; at < 16 * kDimV / 8; at += 32) {
    const int row = at % 16, piece = at / 16;  // of 16 bytes
    const uint4 words =
        load_shared_16(staging + piece / 8 * kPanelBytes16 + row * 128 + (piece ^ row) % 8 * 16);
    if (row < rows && 8 * piece < dim_v)
      *reinterpret_cast<uint4*>(to + row * stride + 8 * piece) = words;
  }
  __syncwarp();
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
