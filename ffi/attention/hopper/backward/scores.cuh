// From products to weights and gradients of the scores, in the accumulators: 64 keys of a warpgroup along the rows, query
// rows along the columns. Of a lane's registers 4n .. 4n + 3: keys lane / 4 (two) and 8 more (two) of the warp's 16, query
// rows 8n + 2 (lane % 4) and the next one.
#pragma once

#include "attention/backward/score_gradient.cuh"
#include "attention/hopper/backward/traits.cuh"
#include "attention/hopper/epilogue.cuh"
#include "device/bulk.cuh"
#include "device/math.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

template <class Traits>
using KeyScores = float[Traits::kRows / 2];
// The same in 16 bits, as wgmma takes it from registers.
template <class Traits>
using KeyOperand = uint32_t[Traits::kRows / 16][4];

// Of query rows 16i .. 16i + 15.
template <class T>
__device__ __forceinline__ void pack_scores(int i, const float* s, uint32_t (&to)[4]) {
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      to[2 * n + half] = pack_pair<T>(s[8 * i + 4 * n + 2 * half], s[8 * i + 4 * n + 2 * half + 1]);
}
template <class Traits, int kBegin = 0, int kEnd = Traits::kRows>
__device__ __forceinline__ void pack_scores(const KeyScores<Traits>& s, KeyOperand<Traits>& to) {
#pragma unroll
  for (int i = kBegin / 16; i < kEnd / 16; ++i) pack_scores<typename Traits::T>(i, s, to[i]);
}

__device__ __forceinline__ float2 unpack_pair(uint32_t pair, __nv_bfloat16) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
__device__ __forceinline__ float2 unpack_pair(uint32_t pair, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

// -inf for what positions or segment ids hide of rows kBegin .. kEnd - 1. `warp_key`: the warp's first key within the tile.
template <class Traits, int kBegin = 0, int kEnd = Traits::kRows>
__device__ __forceinline__ void mask_scores(KeyScores<Traits>& s, const AttentionProblem& p,
                                            const KeyTile& tile, const RowBlock& block, int group,
                                            int warp_key, int lane) {
  const int j0 = tile.first_key + warp_key + lane / 4;
  const int i0 = block.first_row + 2 * (lane % 4);
  if (block.flags & kMaskedForFirstGroup << group) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int j = j0 + 8 * half;
      const Visibility::Rows rows = tile.visible.rows_of_keys(j, j + 1);
      const auto count = static_cast<unsigned>(rows.end - rows.begin);
      const auto first = static_cast<unsigned>(i0 - rows.begin);
#pragma unroll
      for (int n = kBegin / 8; n < kEnd / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (first + (8 * n + e) >= count) s[4 * n + 2 * half + e] = negative_infinity();
    }
  }
  if (block.flags & kSegmentMaskedRows) {
    const Segments segments(p, tile.sequence);
    const int last_row = tile.visible.q_len - 1, last_key = tile.visible.kv_len - 1;
    const int id[2] = {segments.k[min(j0, last_key)], segments.k[min(j0 + 8, last_key)]};
#pragma unroll
    for (int n = kBegin / 8; n < kEnd / 8; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row_id = segments.q[min(i0 + 8 * n + e, last_row)];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (row_id != id[half]) s[4 * n + 2 * half + e] = negative_infinity();
      }
  }
}

// Scores to weights, in place. `scale`: to base 2. `lse`: shared address of that of the lane's first row.
template <class Traits, int kBegin = 0, int kEnd = Traits::kRows>
__device__ __forceinline__ void weigh(KeyScores<Traits>& s, float scale, uint32_t lse) {
#pragma unroll
  for (int n = kBegin / 8; n < kEnd / 8; ++n) {
    const float2 of_rows = load_shared_float2(lse + n * 32);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      s[4 * n + e] = exp2_approx(fmaf(s[4 * n + e], scale, e % 2 ? -of_rows.y : -of_rows.x));
  }
}

// Scores and dP to weights, which dropout has gone over, and dS, through every option of a call; both rounded, 16 query
// rows at a time, for want of registers.
template <class Traits>
__device__ __forceinline__ void apply_features(KeyScores<Traits>& s, KeyScores<Traits>& dp,
                                               const AttentionProblem& p, const KeyTile& tile,
                                               const RowBlock& block, int group, int warp_key,
                                               uint32_t lse, uint32_t delta, int lane,
                                               KeyOperand<Traits>& weights,
                                               KeyOperand<Traits>& gradients) {
  using Block = ScoreBlock<1, 2>;
  const ScoreModifier modify(p, tile.sequence, block.head);
  const int j0 = tile.first_key + warp_key;
#pragma unroll
  for (int n = 0; n < Traits::kRows / 16; ++n) {
    const int i0 = block.first_row + 16 * n;
    uint32_t visible = ~0u;
    if (block.flags & kMaskedForFirstGroup << group)
      visible = visible_bits<1, 2>(tile.visible, i0, j0, lane);
    if (block.flags & kSegmentMaskedRows)
      visible &= same_segment_bits<1, 2>(tile.visible, Segments(p, tile.sequence), i0, j0, lane);
    featured_score_gradients<1, 2, OrderedRowStats>(
        reinterpret_cast<Block&>(s[8 * n]), reinterpret_cast<Block&>(dp[8 * n]), p, modify, visible,
        lse + 64 * n, delta + 64 * n, i0, j0, lane);
    pack_scores<typename Traits::T>(n, s, weights[n]);
    pack_scores<typename Traits::T>(n, dp, gradients[n]);
  }
}

// Statistics of query rows to accumulators. `rows`: shared address of that of the lane's first row.
template <class Traits>
__device__ __forceinline__ void begin_with_statistics(KeyScores<Traits>& s, uint32_t rows) {
#pragma unroll
  for (int n = 0; n < Traits::kRows / 8; ++n) {
    const float2 of_rows = load_shared_float2(rows + n * 32);
    s[4 * n] = s[4 * n + 2] = of_rows.x;
    s[4 * n + 1] = s[4 * n + 3] = of_rows.y;
  }
}

// What is to be subtracted from dP of query rows 8n + ...: delta, unless dP has begun with it.
template <class Traits>
__device__ __forceinline__ float2 delta_of_rows(uint32_t delta, int n) {
  return Traits::kBeginsWithDelta ? make_float2(0.0f, 0.0f) : load_shared_float2(delta + n * 32);
}

// dP of query rows 16i .. 16i + 15 to dS = P (dP - delta), in place; P as rounded.
template <class Traits>
__device__ __forceinline__ void differentiate(int i, const uint32_t (&rounded)[4], float* dp,
                                              uint32_t delta) {
#pragma unroll
  for (int n = 2 * i; n < 2 * i + 2; ++n) {
    const float2 of_rows = delta_of_rows<Traits>(delta, n);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 w = unpack_pair(rounded[n % 2 * 2 + half], typename Traits::T());
      float& a = dp[4 * n + 2 * half];
      float& b = dp[4 * n + 2 * half + 1];
      a = w.x * (a - of_rows.x);
      b = w.y * (b - of_rows.y);
    }
  }
}

__device__ __forceinline__ uint32_t multiply_pairs(uint32_t x, uint32_t y) {
  const __nv_bfloat162 product = __hmul2(reinterpret_cast<const __nv_bfloat162&>(x),
                                         reinterpret_cast<const __nv_bfloat162&>(y));
  return reinterpret_cast<const uint32_t&>(product);
}
// The same to dS as rounded, where kMultipliesPairs.
template <class Traits>
__device__ __forceinline__ void differentiate_pairs(int i, const uint32_t (&rounded)[4],
                                                    const float* dp, uint32_t delta,
                                                    uint32_t (&to)[4]) {
#pragma unroll
  for (int n = 2 * i; n < 2 * i + 2; ++n) {
    const float2 of_rows = delta_of_rows<Traits>(delta, n);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* at = dp + 4 * n + 2 * half;
      const int word = n % 2 * 2 + half;
      to[word] = multiply_pairs(rounded[word],
                                pack_pair<__nv_bfloat16>(at[0] - of_rows.x, at[1] - of_rows.y));
    }
  }
}

// dP to dS = P (dP - delta), as rounded. P, in float32, may be gone where it was rounded, and dP is gone.
template <class Traits, int kBegin = 0, int kEnd = Traits::kRows>
__device__ __forceinline__ void differentiate(const KeyScores<Traits>& weights,
                                              const KeyOperand<Traits>& rounded,
                                              KeyScores<Traits>& dp, uint32_t delta,
                                              KeyOperand<Traits>& to) {
  if constexpr (Traits::kMultipliesPairs) {
#pragma unroll
    for (int i = kBegin / 16; i < kEnd / 16; ++i)
      differentiate_pairs<Traits>(i, rounded[i], dp, delta, to[i]);
    return;
  }
  if constexpr (Traits::kRoundedWeights) {
#pragma unroll
    for (int i = kBegin / 16; i < kEnd / 16; ++i) differentiate<Traits>(i, rounded[i], dp, delta);
  } else {
#pragma unroll
    for (int n = kBegin / 8; n < kEnd / 8; ++n) {
      const float2 of_rows = delta_of_rows<Traits>(delta, n);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        dp[4 * n + e] = weights[4 * n + e] * (dp[4 * n + e] - (e % 2 ? of_rows.y : of_rows.x));
    }
  }
  pack_scores<Traits, kBegin, kEnd>(dp, to);
}

// dS, which lies keys by rows, to a panel of 64 keys in shared memory, rows of queries.
template <class Traits>
__device__ __forceinline__ void store_score_gradients(uint32_t panel, const KeyOperand<Traits>& ds,
                                                      int warp, int lane) {
  using Gradient = typename Traits::Gradient;
  const int row = lane % 8 + lane / 16 * 8, piece = 2 * warp + lane / 8 % 2;
  const uint32_t at = panel + Gradient::row_offset(row) + ((piece ^ lane % 8) * 16);
#pragma unroll
  for (int i = 0; i < Traits::kRows / 16; ++i)
    store_matrices_transposed(at + Gradient::row_offset(16 * i), ds[i]);
}

}  // namespace jax_baracuda
