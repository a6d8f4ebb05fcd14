// One warp's share of a chunk for float32: exact products on the CUDA cores.
//
// kDimTile / 16 neighbouring lanes share a key, 16 elements each; the other lanes of the warp take other
// keys, with a running softmax of their own that is merged once at the end of the row.
#pragma once

#include <cstdint>

#include "decode/config.h"
#include "decode/params.h"
#include "decode/score.cuh"
#include "decode/source.cuh"
#include "device/math.cuh"

namespace jax_baracuda {

template <int kDimTile_, bool kVector_>
class SimtTile {
 public:
  using Element = float;
  static constexpr int kDimTile = kDimTile_;
  static constexpr int kHeadTile = 4;
  static constexpr bool kVector = kVector_;
  static constexpr int kLanesPerKey = kDimTile / 16;
  static constexpr int kKeysAtOnce = 32 / kLanesPerKey;
  static constexpr int kPasses = 2;
  static constexpr int kTokens = kPasses * kKeysAtOnce;

  // See MmaTile.
  __device__ static int query_index(int head, int chunk) { return head * kDimTile + chunk * 4; }
  __device__ static constexpr int query_word(int word) { return word; }

  __device__ SimtTile() { reset(); }

  __device__ void reset() {
#pragma unroll
    for (int h = 0; h < kHeadTile; ++h) {
      maximum_[h] = negative_infinity();
      sum_[h] = 0.0f;
#pragma unroll
      for (int d = 0; d < 16; ++d) out_[h][d] = 0.0f;
    }
  }

  template <class Source>
  __device__ void load_keys(const DecodeParams& p, const Source& source, int token, int limit) {
    load(static_cast<const float*>(p.key), p, source, token, limit, keys_);
  }
  template <class Source>
  __device__ void load_values(const DecodeParams& p, const Source& source, int token, int limit) {
    load(static_cast<const float*>(p.value), p, source, token, limit, values_);
  }

  __device__ void multiply_keys(const uint4* query) {
#pragma unroll
    for (int h = 0; h < kHeadTile; ++h) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) scores_[pass][h] = 0.0f;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float4 q = as_float4(query[h * (kDimTile / 4) + lane_in_key() + kLanesPerKey * j]);
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
          const float4 k = as_float4(keys_[pass][j]);
          scores_[pass][h] += q.x * k.x + q.y * k.y + q.z * k.z + q.w * k.w;
        }
      }
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass)
        scores_[pass][h] = butterfly_sum<1, kLanesPerKey / 2>(scores_[pass][h]);
    }
  }

  __device__ void update_softmax(const DecodeParams& p, const float* slopes_log2, int token,
                                 int limit, int query_position) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) scale_products(p, scores_[pass]);
#pragma unroll
    for (int h = 0; h < kHeadTile; ++h) {
      const float slope = slopes_log2 == nullptr ? 0.0f : slopes_log2[h];
      float maximum = maximum_[h];
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const int key = token + pass * kKeysAtOnce + key_in_warp();
        float& s = scores_[pass][h];
        s -= slope * static_cast<float>(query_position - key);
        s = key < limit ? s : negative_infinity();
        maximum = fmaxf(maximum, s);
      }
      const float base = maximum == negative_infinity() ? 0.0f : maximum;
      const float correction = exp2f(maximum_[h] - base);
      maximum_[h] = maximum;
      sum_[h] *= correction;
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        scores_[pass][h] = exp2f(scores_[pass][h] - base);
        sum_[h] += scores_[pass][h];
      }
#pragma unroll
      for (int d = 0; d < 16; ++d) out_[h][d] *= correction;
    }
  }

  __device__ void multiply_values() {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float4 v = as_float4(values_[pass][j]);
#pragma unroll
        for (int h = 0; h < kHeadTile; ++h) {
          out_[h][j * 4 + 0] += scores_[pass][h] * v.x;
          out_[h][j * 4 + 1] += scores_[pass][h] * v.y;
          out_[h][j * 4 + 2] += scores_[pass][h] * v.z;
          out_[h][j * 4 + 3] += scores_[pass][h] * v.w;
        }
      }
    }
  }

  __device__ void store(float* out, float* stats, int heads) {
#pragma unroll
    for (int h = 0; h < kHeadTile; ++h) {
      const float maximum = butterfly_max<kLanesPerKey, 16>(maximum_[h]);
      const float base = maximum == negative_infinity() ? 0.0f : maximum;
      const float factor = exp2f(maximum_[h] - base);
      const float sum = butterfly_sum<kLanesPerKey, 16>(sum_[h] * factor);
      if (threadIdx.x % 32 == 0 && h < heads)
        reinterpret_cast<float2*>(stats)[h] = make_float2(maximum, sum);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float4 o;
        o.x = butterfly_sum<kLanesPerKey, 16>(out_[h][j * 4 + 0] * factor);
        o.y = butterfly_sum<kLanesPerKey, 16>(out_[h][j * 4 + 1] * factor);
        o.z = butterfly_sum<kLanesPerKey, 16>(out_[h][j * 4 + 2] * factor);
        o.w = butterfly_sum<kLanesPerKey, 16>(out_[h][j * 4 + 3] * factor);
        if (key_in_warp() == 0 && h < heads)
          *reinterpret_cast<float4*>(out + h * (kDimTile + kMergePad) +
                                     (lane_in_key() + kLanesPerKey * j) * 4) = o;
      }
    }
  }

 private:
  __device__ static int lane_in_key() { return threadIdx.x % kLanesPerKey; }
  __device__ static int key_in_warp() { return threadIdx.x % 32 / kLanesPerKey; }
  __device__ static float4 as_float4(const uint4& v) {
    return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z),
                       __uint_as_float(v.w));
  }

  template <class Source>
  __device__ static void load(const float* base, const DecodeParams& p, const Source& source,
                              int token, int limit, uint4 (&into)[kPasses][4]) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int key = pass * kKeysAtOnce + key_in_warp();
      const float* from = base + source.offset(p, source.find(key));
#pragma unroll
      for (int j = 0; j < 4; ++j)
        into[pass][j] = load_chunk<kVector>(from, lane_in_key() + kLanesPerKey * j, p.head_dim,
                                            token + key < limit);
    }
  }

  uint4 keys_[kPasses][4];
  uint4 values_[kPasses][4];
  float scores_[kPasses][kHeadTile];
  float out_[kHeadTile][16];
  float maximum_[kHeadTile];
  float sum_[kHeadTile];
};

}  // namespace jax_baracuda
