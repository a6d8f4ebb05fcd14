// What the one option of a call makes of the scores of a row block, in the registers of a consumer warpgroup: the kernels for a
// soft cap, ALiBi, a bias that is one row for all queries, or dropout are otherwise the plain ones.
#pragma once

#include "attention/hopper/backward/scores.cuh"
#include "attention/hopper/logits.cuh"
#include "attention/score.cuh"

namespace jax_baracuda {

// No option.
template <class Traits, int kOption = Traits::kOption>
struct BlockOption {
  __device__ __forceinline__ BlockOption(const AttentionProblem&, const KeyTile&, const RowBlock&,
                                         int, int, int) {}
  __device__ __forceinline__ void change(KeyScores<Traits>&) const {}
};

// Numbers added to a lane's scores, in base 2: of its two keys and of an even row and an odd one, and per 8 rows.
template <bool kGrows>
struct AddedTerms {
  float of_key[2][2];
  float of_rows;  // if it grows

  // Scores of query rows 16i .. 16i + 15 to weights, in place.
  template <class Traits>
  __device__ __forceinline__ void weigh(int i, KeyScores<Traits>& s, float scale,
                                        uint32_t lse) const {
#pragma unroll
    for (int n = 2 * i; n < 2 * i + 2; ++n) {
      const float2 of = load_shared_float2(lse + n * 32);
      const float grown = kGrows ? of_rows * n : 0.0f;
      const float row[2] = {kGrows ? of.x + grown : of.x, kGrows ? of.y + grown : of.y};
#pragma unroll
      for (int e = 0; e < 4; ++e)
        s[4 * n + e] = exp2_approx(fmaf(s[4 * n + e], scale, of_key[e / 2][e % 2] - row[e % 2]));
    }
  }
};

// ALiBi: on one side of the diagonal the distance is a number of the row less one of the key.
template <class Traits>
struct BlockOption<Traits, kAlibi> {
  AddedTerms<true> terms;
  float slope, scale;
  int distance;  // of the lane's first score from the diagonal
  bool straddles;

  __device__ __forceinline__ BlockOption(const AttentionProblem& p, const KeyTile& tile,
                                         const RowBlock& block, int group, int warp, int lane)
      : scale(p.scale * kLog2E) {
    slope =
        p.alibi_slopes[tile.sequence.index * p.alibi_stride + block.head] * kLog2E;
    const int row = block.first_row + tile.visible.offset, key = tile.first_key + 64 * group;
    const bool after = row + Traits::kRows - 1 <= key;
    straddles = !p.causal && !after && row < key + 63;
    distance = row + 2 * (lane % 4) - (key + 16 * warp + lane / 4);
    const float growth = straddles ? 0.0f : !p.causal && after ? -slope : slope;
    terms.of_rows = 8.0f * growth;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        terms.of_key[half][e] = growth * static_cast<float>(8 * half - e - distance);
  }
  // Blocks that lie on both sides of the diagonal.
  __device__ __forceinline__ void change(KeyScores<Traits>& s) const {
    if (!__any_sync(0xffffffffu, straddles)) return;
    const float ratio = slope / scale, first = static_cast<float>(distance);
#pragma unroll
    for (int n = 0; n < Traits::kRows / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        s[4 * n + e] -= ratio * fabsf(first + static_cast<float>(8 * n + e % 2 - e / 2 * 8));
  }
};

// A bias with one row for all queries.
template <class Traits>
struct BlockOption<Traits, kBias> {
  AddedTerms<false> terms;

  __device__ __forceinline__ BlockOption(const AttentionProblem& p, const KeyTile& tile,
                                         const RowBlock& block, int group, int warp, int lane) {
    const ScoreModifier modify(p, tile.sequence, block.head);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = tile.first_key + 64 * group + 16 * warp + lane / 4 + 8 * half;
      const float bias = key < tile.visible.kv_len ? modify.bias_at(0, key) : 0.0f;
      terms.of_key[half][0] = terms.of_key[half][1] = bias;
    }
  }
  __device__ __forceinline__ void change(KeyScores<Traits>&) const {}
};

__device__ __forceinline__ float saturate_fma(float a, float b, float c) {
  float d;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;\n" : "=f"(d) : "f"(a), "f"(b), "f"(c));
  return d;
}

// A soft cap. Factors are weights times what the gradient loses on its way through the cap.
template <class Traits>
struct BlockOption<Traits, kSoftCap> {
  float inner, outer;

  __device__ __forceinline__ BlockOption(const AttentionProblem& p, const KeyTile&, const RowBlock&,
                                         int, int, int)
      : inner(p.scale / p.soft_cap), outer(p.soft_cap * kLog2E) {}
  __device__ __forceinline__ void change(KeyScores<Traits>&) const {}

  // To hyperbolic tangents, which the mask comes after.
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void bend(KeyScores<Traits>& s) const {
#pragma unroll
    for (int n = kBegin / 2; n < kEnd / 2; ++n) s[n] = tanh_approx(s[n] * inner);
  }
  __device__ __forceinline__ void weigh(int i, KeyScores<Traits>& s, uint32_t lse,
                                        uint32_t (&weights)[4], uint32_t (&factors)[4]) const {
    float slopes[8];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float2 of_rows = load_shared_float2(lse + (2 * i + n) * 32);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = s[8 * i + 4 * n + e];
        const float tangent = x;
        x = exp2_approx(fmaf(tangent, outer, e % 2 ? -of_rows.y : -of_rows.x));
        slopes[4 * n + e] = x * saturate_fma(-tangent, tangent, 1.0f);  // 0 of what is hidden
      }
    }
    pack_scores<typename Traits::T>(i, s, weights);
    pack_scores<typename Traits::T>(0, slopes, factors);
  }
};

#ifndef PHILOX_AT_ONCE
#define PHILOX_AT_ONCE 1
#endif
inline constexpr int kPhiloxAtOnce = PHILOX_AT_ONCE;

// Dropout. Factors are weights that it has not gone over. What 1 / (1 - rate) multiplies is multiplied at the end: dV, and
// dS, for which delta has been divided by it.
template <class Traits>
struct BlockOption<Traits, kDropout> {
  // Which of the lane's weights are kept, 64 rows a word: of rows 16i .. 16i + 15 those of the pairs of one key and two rows.
  uint32_t kept[Traits::kRows / 64];

  __device__ __forceinline__ BlockOption(const AttentionProblem& p, const KeyTile& tile,
                                         const RowBlock& block, int group, int warp, int lane) {
    ScoreModifier modify;
    modify.set_dropout(p, tile.sequence, block.head);
    const int row = block.first_row + 2 * (lane % 4);
    const int key = tile.first_key + 64 * group + 16 * warp + lane / 4;
#pragma unroll
    for (int word = 0; word < Traits::kRows / 64; ++word) {
      kept[word] = 0;
#pragma unroll kPhiloxAtOnce
      for (int i = 0; i < 4; ++i)
        kept[word] = kept[word] << 2 | kept_of(modify, row + 64 * word + 16 * i, key);
    }
  }
  __device__ __forceinline__ void change(KeyScores<Traits>&) const {}

  // Bits 0 and 1 of each byte: those of pairs 2, 3 and of pairs 0, 1, a byte each of their four weights.
  static __device__ __forceinline__ uint32_t kept_of(const ScoreModifier& modify, int row,
                                                     int key) {
    uint32_t bits = 0;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const uint4 words = modify.dropout_words(row + e, key);
      if (words.x >= modify.threshold) bits |= 2u << 8 * e;
      if (words.y >= modify.threshold) bits |= 2u << (16 + 8 * e);
      if (words.z >= modify.threshold) bits |= 1u << 8 * e;
      if (words.w >= modify.threshold) bits |= 1u << (16 + 8 * e);
    }
    return bits;
  }
  // All ones in the halves of a pair that are kept.
  __device__ __forceinline__ uint32_t mask(int i, int pair) const {
    const uint32_t bits = kept[i / 4] << (2 * (i % 4) + pair / 2);
    uint32_t mask;
    asm("prmt.b32 %0, %1, 0, %2;\n" : "=r"(mask) : "r"(bits), "r"(pair % 2 ? 0xbbaa : 0x9988));
    return mask;
  }
  __device__ __forceinline__ void drop(int i, const uint32_t (&factors)[4],
                                       uint32_t (&weights)[4]) const {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) weights[pair] = factors[pair] & mask(i, pair);
  }
};

// dP of query rows 16i .. 16i + 15 to dS = W dP - P delta, in place; W: P that dropout has gone over.
template <class T>
__device__ __forceinline__ void differentiate_dropped(int i, const uint32_t (&weights)[4],
                                                      const uint32_t (&all)[4], float* dp,
                                                      uint32_t delta) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float2 of_rows = load_shared_float2(delta + (2 * i + n) * 32);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 w = unpack_pair(weights[2 * n + half], T());
      const float2 p = unpack_pair(all[2 * n + half], T());
      float* d = dp + 8 * i + 4 * n + 2 * half;
      d[0] = fmaf(w.x, d[0], -p.x * of_rows.x);
      d[1] = fmaf(w.y, d[1], -p.y * of_rows.y);
    }
  }
}

}  // namespace jax_baracuda
