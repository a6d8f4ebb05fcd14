// What the one option of a call makes of the scores of a row block, in the registers of a consumer warpgroup: the kernels for a
// soft cap, ALiBi, a bias that is one row for all queries, or dropout are otherwise the plain ones.
#pragma once

#include "attention/hopper/backward/scores.cuh"
#include "attention/hopper/logits.cuh"
#include "attention/score.cuh"
#include "device/fragment.cuh"

namespace jax_baracuda {

// What an option has in global memory for a head and a lane's two keys, the first of them `key`. It is looked up when the head
// changes.
template <int kOption>
struct HeadOption {
  static constexpr bool kLooksUp = false;
  __device__ __forceinline__ void find(const AttentionProblem&, const KeyTile&, int, int) {}
};
template <>
struct HeadOption<kAlibi> {
  static constexpr bool kLooksUp = true;
  float slope;  // times log2(e)

  __device__ __forceinline__ void find(const AttentionProblem& p, const KeyTile& tile, int head,
                                       int) {
    slope = p.alibi_slopes[tile.sequence.index * p.alibi_stride + head] * kLog2E;
  }
};
template <>
struct HeadOption<kRowBias> {
  static constexpr bool kLooksUp = true;
  float of_key[2];

  __device__ __forceinline__ void find(const AttentionProblem& p, const KeyTile& tile, int head,
                                       int key) {
    const ScoreModifier modify(p, tile.sequence, head);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      of_key[half] = key + 8 * half < tile.visible.kv_len ? modify.bias_at(0, key + 8 * half) : 0;
  }
};
template <>
struct HeadOption<kDropout> {
  static constexpr bool kLooksUp = true;
  ScoreModifier modify;  // its dropout alone

  __device__ __forceinline__ void find(const AttentionProblem& p, const KeyTile& tile, int head,
                                       int) {
    modify.set_dropout(p, tile.sequence, head);
  }
};

// The same for a row block and the lane's first key. No option:
template <class Traits, int kOption = Traits::kOption>
struct BlockOption {
  __device__ __forceinline__ BlockOption(const AttentionProblem&, const KeyTile&, const RowBlock&,
                                         const HeadOption<kOption>&, int, int, int) {}
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
                                         const RowBlock& block, const HeadOption<kAlibi>& of_head,
                                         int group, int key, int lane)
      : slope(of_head.slope), scale(p.scale * kLog2E) {
    const int row = block.first_row + tile.visible.offset, first = tile.first_key + 64 * group;
    const bool after = row + Traits::kRows - 1 <= first;
    straddles = !p.causal && !after && row < first + 63;
    distance = row + 2 * (lane % 4) - key;
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
    const float ratio = slope * reciprocal_approx(scale), first = static_cast<float>(distance);
#pragma unroll
    for (int n = 0; n < Traits::kRows / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        s[4 * n + e] -= ratio * fabsf(first + static_cast<float>(8 * n + e % 2 - e / 2 * 8));
  }
};

// A bias with one row for all queries.
template <class Traits>
struct BlockOption<Traits, kRowBias> {
  AddedTerms<false> terms;

  __device__ __forceinline__ BlockOption(const AttentionProblem&, const KeyTile&, const RowBlock&,
                                         const HeadOption<kRowBias>& of_head, int, int, int) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      terms.of_key[half][0] = terms.of_key[half][1] = of_head.of_key[half];
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
                                         const HeadOption<kSoftCap>&, int, int, int)
      : inner(p.scale * reciprocal_approx(p.soft_cap)), outer(p.soft_cap * kLog2E) {}
  __device__ __forceinline__ void change(KeyScores<Traits>&) const {}

  // To hyperbolic tangents, which the mask comes after.
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void bend(KeyScores<Traits>& s) const {
#pragma unroll
    for (int n = kBegin / 2; n < kEnd / 2; ++n) s[n] = tanh_approx(s[n] * inner);
  }
  // Tangents of query rows 16i .. 16i + 15 to weights, in place, and factors.
  __device__ __forceinline__ void weigh(int i, KeyScores<Traits>& s, uint32_t lse,
                                        uint32_t (&factors)[4]) const {
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
    pack_scores<typename Traits::T>(0, slopes, factors);
  }
};

// Dropout. Factors are weights that it has not gone over. What one over the part that is kept multiplies is multiplied at the
// end: dV, and dS, for which delta has been divided by it.
template <class Traits>
struct BlockOption<Traits, kDropout> {
  const ScoreModifier modify;
  const int row, key;   // of the lane's first score
  mutable uint4 drawn;  // for 32 rows

  __device__ __forceinline__ BlockOption(const AttentionProblem&, const KeyTile&,
                                         const RowBlock& block, const HeadOption<kDropout>& of_head,
                                         int, int key, int lane)
      : modify(of_head.modify), row(block.first_row + 2 * (lane % 4)), key(key) {}
  __device__ __forceinline__ void change(KeyScores<Traits>&) const {}

  // Of rows 16i .. 16i + 15; of an even i before the next one.
  __device__ __forceinline__ void find_kept(int i, uint32_t (&masks)[4]) const {
    const uint32_t thresholds = modify.threshold * 0x10001;
    if (i % 2 == 0) drawn = DropoutPairs::draw(modify, row + 16 * i, key);
    const DropoutPairs pairs(drawn, 16 * i, key);
#pragma unroll
    for (int pair = 0; pair < 4; ++pair)
      masks[pair] = kept_halves(pairs.at[pair / 2][pair % 2], thresholds);
  }
};

// A 16-bit bias with a row for each query: before a warp's scores are asked for, it copies what its 16 keys have in 64 rows to a
// place of its own in shared memory, 32 bytes a row.
struct WarpBias {
  static constexpr int kRows = 64, kBytes = kRows * 32;
  uint32_t place;

  // Of 8 rows the same half is in different banks.
  __device__ __forceinline__ uint32_t at(int row, int half) const {
    return place + row * 32 + (half ^ (row >> 2 & 1)) * 16;
  }
  // Rows from `first` on, keys from `key` on. Zeros for what lies outside.
  __device__ __forceinline__ void load(const AttentionProblem& p, const KeyTile& tile, int head,
                                       int first, int key, int lane) const {
    const AttentionBias& bias = p.bias;
    const int half = lane % 2;
    const int64_t start = tile.sequence.index * bias.sequence_stride + head * bias.head_stride;
    const char* from = static_cast<const char*>(bias.data) + 2 * (start + key + 8 * half);
    const bool inside = key + 8 * half < tile.visible.kv_len;
    __syncwarp();  // the last block has been read by all lanes
#pragma unroll
    for (int row = lane / 2; row < kRows; row += 16)
      copy_async_16(at(row, half), from + 2 * (first + row) * bias.row_stride,
                    inside && first + row < tile.visible.q_len);
    copy_async_commit();
  }
  __device__ __forceinline__ void wait() const {
    copy_async_wait<0>();
    __syncwarp();
  }
  // To the scores of 16 rows, `row` of those that it has and the next ones.
  template <class T>
  __device__ __forceinline__ void add(int row, float* s, float factor, int lane) const {
    uint32_t pairs[4];
    load_matrices_transposed(pairs, at(row + lane % 8 + lane / 16 * 8, lane / 8 % 2));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 bias = unpack_pair(pairs[i], T());
      s[2 * i] += bias.x * factor;
      s[2 * i + 1] += bias.y * factor;
    }
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

// The same to dS as rounded, where kMultipliesPairs: W (dP - delta) of what was kept, P (-delta) of what was dropped.
__device__ __forceinline__ void differentiate_dropped_pairs(int i, const uint32_t (&weights)[4],
                                                            const uint32_t (&all)[4],
                                                            const float* dp, uint32_t delta,
                                                            uint32_t (&to)[4]) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float2 of_rows = load_shared_float2(delta + (2 * i + n) * 32);
    const uint32_t deltas = pack_pair<__nv_bfloat16>(-of_rows.x, -of_rows.y);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int word = 2 * n + half;
      const float* d = dp + 8 * i + 2 * word;
      const uint32_t dropped = multiply_pairs(weights[word] ^ all[word], deltas);
      const uint32_t difference = pack_pair<__nv_bfloat16>(d[0] - of_rows.x, d[1] - of_rows.y);
      asm("fma.rn.bf16x2 %0, %1, %2, %3;\n"
          : "=r"(to[word])
          : "r"(weights[word]), "r"(difference), "r"(dropped));
    }
  }
}

// The same of weights whose sign says that they were dropped.
template <class T>
__device__ __forceinline__ void differentiate_signed(int i, const uint32_t (&weights)[4], float* dp,
                                                     uint32_t delta) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float2 of_rows = load_shared_float2(delta + (2 * i + n) * 32);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 w = unpack_pair(weights[2 * n + half], T());
      float* d = dp + 8 * i + 4 * n + 2 * half;
      d[0] = fmaf(fmaxf(w.x, 0.0f), d[0], -fabsf(w.x) * of_rows.x);
      d[1] = fmaf(fmaxf(w.y, 0.0f), d[1], -fabsf(w.y) * of_rows.y);
    }
  }
}

}  // namespace jax_baracuda
