// Scores of one block of keys: modifiers, mask, online softmax. Rows of a warp: kRowTiles times 16; a lane holds
// two rows of each, and of those the columns 8n + 2t, 8n + 2t + 1.
#pragma once

#include "attention/score.cuh"
#include "attention/sequence.cuh"

namespace jax_baracuda {

template <int kRowTiles, int kN>
using Scores = float[kRowTiles][kN / 8][4];

// The row of entry e of row tile r, and the column of entry e of column block n.
__device__ __forceinline__ int score_row(int r, int e, int lane) {
  return 16 * r + lane / 4 + (e >> 1) * 8;
}
__device__ __forceinline__ int score_column(int n, int e, int lane) {
  return 8 * n + 2 * (lane % 4) + (e & 1);
}

// Hides the keys that positions hide. row_of(r, half): the row of the sequence that entries 2 half, 2 half + 1 of row
// tile r belong to; j0: first key of the block.
template <int kRowTiles, int kN, class RowOf>
__device__ __forceinline__ void hide_by_position_of(Scores<kRowTiles, kN>& s,
                                                    const Visibility& visible, RowOf row_of, int j0,
                                                    int lane) {
  const int column = j0 + score_column(0, 0, lane);
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = row_of(r, half);
      const Visibility::Keys keys = visible.keys_of_rows(i, i + 1);
      // Bounds on the distance from this lane's first column, which the compiler knows for every element.
      const int begin = keys.begin - column, end = keys.end - column,
                sink_end = keys.sink_end - column;
#pragma unroll
      for (int n = 0; n < kN / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int distance = 8 * n + e;
          if ((distance < begin || distance >= end) && distance >= sink_end)
            s[r][n][2 * half + e] = negative_infinity();
        }
    }
}
// The same; i0: first row of the warp.
template <int kRowTiles, int kN>
__device__ __forceinline__ void hide_by_position(Scores<kRowTiles, kN>& s,
                                                 const Visibility& visible, int i0, int j0,
                                                 int lane) {
  hide_by_position_of<kRowTiles, kN>(
      s, visible, [=](int r, int half) { return i0 + score_row(r, 2 * half, lane); }, j0, lane);
}

// Hides the keys of other segments; keys past the operands' end are hidden already.
template <int kRowTiles, int kN, class RowOf>
__device__ __forceinline__ void hide_by_segment_of(Scores<kRowTiles, kN>& s,
                                                   const Segments& segments, int rows, int keys,
                                                   RowOf row_of, int j0, int lane) {
#pragma unroll
  for (int n = 0; n < kN / 8; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int id = segments.k[min(j0 + score_column(n, e, lane), keys - 1)];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (segments.q[min(row_of(r, half), rows - 1)] != id)
            s[r][n][2 * half + e] = negative_infinity();
    }
}
template <int kRowTiles, int kN>
__device__ __forceinline__ void hide_by_segment(Scores<kRowTiles, kN>& s, const Segments& segments,
                                                int rows, int keys, int i0, int j0, int lane) {
  hide_by_segment_of<kRowTiles, kN>(
      s, segments, rows, keys, [=](int r, int half) { return i0 + score_row(r, 2 * half, lane); },
      j0, lane);
}

// Applies `change(&score, i, j)` to every score that is visible so far: only those lie within the operands for sure.
template <int kRowTiles, int kN, class Change>
__device__ __forceinline__ void for_visible(Scores<kRowTiles, kN>& s, int i0, int j0, int lane,
                                            Change change) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kN / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (s[r][n][e] != negative_infinity())
          change(s[r][n][e], i0 + score_row(r, e, lane), j0 + score_column(n, e, lane));
}

// Raw products to logits in base 2, one pass over the block for each option of the call.
template <int kRowTiles, int kN>
__device__ __forceinline__ void modify_scores(Scores<kRowTiles, kN>& s, const AttentionProblem& p,
                                              const ScoreModifier& modify, int i0, int j0,
                                              int lane) {
  const float scale = p.soft_cap > 0.0f ? p.scale : p.scale * kLog2E;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kN / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // A hidden score must stay -inf whatever the sign of the scale.
        if (s[r][n][e] != negative_infinity()) s[r][n][e] *= scale;
      }
  if (p.soft_cap > 0.0f) {
    const float cap = p.soft_cap, inverse = 1.0f / p.soft_cap;
    for_visible<kRowTiles, kN>(s, i0, j0, lane, [&](float& x, int, int) {
      x = cap * kLog2E * ScoreModifier::tanh_of(x * inverse);
    });
  }
  if (p.alibi_slopes) {
    const float slope = modify.slope;
    const int offset = modify.offset;
    for_visible<kRowTiles, kN>(s, i0, j0, lane, [&](float& x, int i, int j) {
      x -= slope * fabsf(static_cast<float>(i + offset - j));
    });
  }
  if (p.bias.type != BiasType::kNone)
    modify.with_bias([&](auto bias_at) {
      for_visible<kRowTiles, kN>(s, i0, j0, lane,
                                 [&](float& x, int i, int j) { x += bias_at(i, j); });
    });
}

// Calls f(pair, word) for every two neighbours of a row of 16 rows of a block of scores, with a random word whose lower half is of
// the first. j0, the first key, is a multiple of kN.
template <int kN, class F>
__device__ __forceinline__ void for_dropout_pairs(float (&s)[kN / 8][4],
                                                  const ScoreModifier& modify, int i0, int j0,
                                                  int lane, F f) {
  constexpr int kSpan = kN % 64 == 0 ? 64 : kN % 32 == 0 ? 32 : 16;  // keys that share a draw
  const int i = i0 + score_row(0, 0, lane);
  uint4 drawn;
#pragma unroll
  for (int n = 0; n < kN / 8; n += 2) {
    const int j = j0 + score_column(n, 0, lane);
    if (8 * n % kSpan == 0) drawn = modify.draw(i, j);
    const uint4 words = ScoreModifier::dropout_words(drawn, i0 >> 4, kSpan == 64 ? n / 2 : j >> 4);
    f(&s[n][0], words.x);
    f(&s[n + 1][0], words.y);
    f(&s[n][2], words.z);
    f(&s[n + 1][2], words.w);
  }
}

// Sets dropped weights to zero; the others are scaled at the end.
template <int kRowTiles, int kN>
__device__ __forceinline__ void drop_weights(Scores<kRowTiles, kN>& s, const ScoreModifier& modify,
                                             int i0, int j0, int lane) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
    for_dropout_pairs<kN>(s[r], modify, i0 + 16 * r, j0, lane, [&](float* pair, uint32_t word) {
      if (modify.drops_low(word)) pair[0] = 0.0f;
      if (modify.drops_high(word)) pair[1] = 0.0f;
    });
}

// Running maximum (of scores before `scale`) and sum of each row; the sum is this lane's share until finish().
template <int kRowTiles>
struct OnlineSoftmax {
  float maximum[kRowTiles][2], sum[kRowTiles][2];

  __device__ __forceinline__ OnlineSoftmax() {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        maximum[r][half] = negative_infinity();
        sum[r][half] = 0.0f;
      }
  }

  // Turns scores into weights exp2(scale * (s - maximum)), and rescales the output for the new maximum.
  template <int kN, int kColumnTiles>
  __device__ __forceinline__ void update(Scores<kRowTiles, kN>& s,
                                         float (&out)[kRowTiles][kColumnTiles][4], float scale) {
    float rescale[kRowTiles][2];
    bool moved = false;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = s[r][0][2 * half];
#pragma unroll
        for (int n = 0; n < kN / 8; ++n)
          top = fmaxf(top, fmaxf(s[r][n][2 * half], s[r][n][2 * half + 1]));
        const float before = maximum[r][half];
        top = fmaxf(before, butterfly_max<1, 2>(top));
        const float shift = top == negative_infinity() ? 0.0f : top * scale;
        maximum[r][half] = top;
        rescale[r][half] = exp2_approx(before * scale - shift);
        moved = moved || top != before;
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < kN / 8; ++n)
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            s[r][n][e] = exp2_approx(s[r][n][e] * scale - shift);
            total += s[r][n][e];
          }
        sum[r][half] = sum[r][half] * rescale[r][half] + total;
      }
    if (!__any_sync(0xffffffffu, moved)) return;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) out[r][c][e] *= rescale[r][e >> 1];
  }

  // The factor that makes a row of the output an average, and the row's LSE (natural logarithm). A row that saw no
  // key gives 0 and -inf, with a sink too.
  __device__ __forceinline__ float finish(int r, int half, float scale, const float* sink,
                                          float* lse) {
    float total = butterfly_sum<1, 2>(sum[r][half]);
    if (total == 0.0f) {
      *lse = negative_infinity();
      return 0.0f;
    }
    const float top = maximum[r][half] * scale;
    float factor = 1.0f;
    float highest = top;
    if (sink) {
      const float logit = *sink * kLog2E;
      highest = fmaxf(top, logit);
      factor = exp2_approx(top - highest);
      total = total * factor + exp2_approx(logit - highest);
    }
    *lse = (highest + log2f(total)) * kLn2;
    return factor / total;
  }
};

}  // namespace jax_baracuda
