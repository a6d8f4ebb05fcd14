// From raw products q.k to logits in base 2, and which of them dropout keeps. Shared by forward and backward,
// which hold a block of scores with rows or with keys along the accumulator's rows.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/sequence.cuh"
#include "device/math.cuh"
#include "device/philox.cuh"

namespace jax_baracuda {

// What the scores of one (sequence, query head) go through.
struct ScoreModifier {
  float scale;         // times log2(e), without a soft cap
  float soft_cap;      // 0: none
  float slope;         // times log2(e); 0: none
  int offset;          // of the diagonal
  AttentionBias bias;  // data: of this sequence and head
  uint2 seed;
  uint32_t head, batch, threshold;

  ScoreModifier() = default;
  __device__ __forceinline__ ScoreModifier(const AttentionProblem& p, const Sequence& s, int head)
      : scale(p.scale), soft_cap(p.soft_cap) {
    set_slope(p, s, head);
    bias = p.bias;
    const int64_t start = s.index * bias.sequence_stride + head * bias.head_stride;
    const int64_t size = bias.type == BiasType::kMask ? 1 : bias.type == BiasType::kF32 ? 4 : 2;
    bias.data = static_cast<const char*>(bias.data) + start * size;
    if (p.dropout_seed) set_dropout(p, s, head);
  }

  // All that a call with dropout alone needs of it.
  __device__ __forceinline__ void set_dropout(const AttentionProblem& p, const Sequence& s,
                                              int head) {
    threshold = p.dropout_threshold;
    const uint4 row = p.dropout_seed[static_cast<int64_t>(s.index) * p.heads + head];
    seed = make_uint2(row.x, row.y);
    this->head = row.z;
    batch = row.w;
  }

  // All that a call without bias and dropout needs of it to modify whole blocks.
  __device__ __forceinline__ void set_slope(const AttentionProblem& p, const Sequence& s,
                                            int head) {
    offset = p.top_left ? 0 : s.k_rows - s.q_rows;
    slope = p.alibi_slopes ? p.alibi_slopes[s.index * p.alibi_stride + head] * kLog2E : 0.0f;
  }

  // tanh to float32 precision where it is not tiny; the approximate instruction has 11 bits.
  static __device__ __forceinline__ float tanh_of(float x) {
    return 1.0f - __fdividef(2.0f, 1.0f + exp2_approx(x * (2.0f * kLog2E)));
  }

  // The logit of row i and key j in base 2. d(logit)/d(product) / scale, at the same time, goes to `slope_of_cap`.
  __device__ __forceinline__ float operator()(float product, int i, int j,
                                              float* slope_of_cap) const {
    float x = product * scale;
    *slope_of_cap = 1.0f;
    if (soft_cap > 0.0f) {
      const float t = tanh_of(x / soft_cap);
      x = soft_cap * t;
      *slope_of_cap = 1.0f - t * t;
    }
    x *= kLog2E;
    if (slope != 0.0f) x -= slope * fabsf(static_cast<float>(i + offset - j));
    return bias.type == BiasType::kNone ? x : x + bias_at(i, j);
  }
  __device__ __forceinline__ float operator()(float product, int i, int j) const {
    float ignored;
    return (*this)(product, i, j, &ignored);
  }

  // Calls f(bias_at), bias_at(i, j) being the bias in base 2 of a row and a key that lie within it: the type is
  // looked at once, not for every element.
  template <class F>
  __device__ __forceinline__ void with_bias(F f) const {
    const int64_t stride = bias.row_stride;
    const void* data = bias.data;
    switch (bias.type) {
      case BiasType::kF16:
        return f([=](int i, int j) {
          return __half2float(static_cast<const __half*>(data)[i * stride + j]) * kLog2E;
        });
      case BiasType::kBF16:
        return f([=](int i, int j) {
          return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i * stride + j]) * kLog2E;
        });
      case BiasType::kF32:
        return f(
            [=](int i, int j) { return static_cast<const float*>(data)[i * stride + j] * kLog2E; });
      case BiasType::kMask:
        return f([=](int i, int j) {
          return static_cast<const uint8_t*>(data)[i * stride + j] ? 0.0f : negative_infinity();
        });
      default:
        return;
    }
  }

  // Row i and key j lie within the bias.
  __device__ __forceinline__ float bias_at(int i, int j) const {
    const int64_t at = i * bias.row_stride + j;
    switch (bias.type) {
      case BiasType::kF16:
        return __half2float(static_cast<const __half*>(bias.data)[at]) * kLog2E;
      case BiasType::kBF16:
        return __bfloat162float(static_cast<const __nv_bfloat16*>(bias.data)[at]) * kLog2E;
      case BiasType::kF32:
        return static_cast<const float*>(bias.data)[at] * kLog2E;
      case BiasType::kMask:
        return static_cast<const uint8_t*>(bias.data)[at] ? 0.0f : negative_infinity();
      default:
        return 0.0f;
    }
  }

  // Random words of rows {i, i + 8} and keys {j, j + 1, j + 8, j + 9}, i with bit 3 and j with bits 0 and 3 clear.
  // x: row i, keys j and j + 1 in its lower and upper half; y: keys j + 8 and j + 9; z and w: row i + 8.
  __device__ __forceinline__ uint4 dropout_words(int i, int j) const {
    return dropout_words(draw(i, j), i >> 4, j >> 4);
  }
  // The same of what draw() gave for them: of the 16 rows and 16 keys of a 32 x 64 block.
  static __device__ __forceinline__ uint4 dropout_words(uint4 drawn, int rows, int keys) {
    return mix_words(drawn, dropout_factor(rows, keys));
  }
  static __device__ __forceinline__ uint4 mix_words(uint4 x, uint32_t factor) {
    return make_uint4(x.x + factor * x.y, x.y + factor * x.z, x.z + factor * x.w,
                      x.w + factor * x.x);
  }
  // One draw serves 4 x 16 elements of a block of 32 rows and 64 keys, which differ in bits 3 and 4 of i and 0, 3, 4 and 5 of j.
  __device__ __forceinline__ uint4 draw(int i, int j) const {
    return philox(make_uint4(dropout_row(i), dropout_column(j), head, batch), seed);
  }
  static __device__ __forceinline__ uint32_t dropout_row(int i) { return (i >> 5) * 8 + (i & 7); }
  static __device__ __forceinline__ uint32_t dropout_column(int j) {
    return (j >> 6) * 4 + (j >> 1 & 3);
  }
  // Every 16 x 16 elements of a block have words of their own, sums of words and multiples of the next ones: any two of them are as
  // good as independent, since so are the factors, powers of one that makes random numbers.
  static __device__ __forceinline__ uint32_t dropout_factor(int rows, int keys) {
    constexpr uint32_t kSecond = kDropoutMix * kDropoutMix, kFourth = kSecond * kSecond;
    const uint32_t of_keys = (keys & 1 ? kDropoutMix : 1) * (keys & 2 ? kSecond : 1);
    return rows & 1 ? kFourth * of_keys : keys & 3 ? of_keys : 0;
  }
  // Whether a half of a word drops its element: 15 bits of it decide.
  __device__ __forceinline__ bool drops_low(uint32_t word) const {
    return word << 17 < threshold << 17;
  }
  __device__ __forceinline__ bool drops_high(uint32_t word) const {
    return word << 1 < threshold << 17;
  }
};

}  // namespace jax_baracuda
