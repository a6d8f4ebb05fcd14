// From products to weights and gradients, where they lie: a block of scores with keys along the
// rows.
#pragma once

#include "attention/score.cuh"
#include "attention/sequence.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

// A block of scores: kKeyTiles times 16 keys by kRowTiles times 8 rows. Of a lane's entry
// [k][r][e]: its key and its row, from the first ones, and its bit in a word of flags. Flags fit in
// a register, so that they can be found before the products need all the others.
template <int kKeyTiles, int kRowTiles>
using ScoreBlock = float[kKeyTiles][kRowTiles][4];

__device__ __forceinline__ int key_of_score(int k, int e, int lane) {
  return 16 * k + 8 * (e >> 1) + lane / 4;
}
__device__ __forceinline__ int row_of_score(int r, int e, int lane) {
  return 8 * r + 2 * (lane % 4) + (e & 1);
}
template <int kRowTiles>
__device__ constexpr int score_bit(int k, int r, int e) {
  return (k * kRowTiles + r) * 4 + e;
}
template <int kRowTiles>
__device__ __forceinline__ bool is_set(uint32_t bits, int k, int r, int e) {
  return (bits >> score_bit<kRowTiles>(k, r, e) & 1) != 0;
}

// Calls f(k, r, e) for every entry of a block.
template <int kKeyTiles, int kRowTiles, class F>
__device__ __forceinline__ void for_scores(F f) {
  static_assert(kKeyTiles * kRowTiles * 4 <= 32, "flags of a block fit in a word");
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int k = 0; k < kKeyTiles; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) f(k, r, e);
}

// Flags of the scores that positions let through, from row i0 and key j0.
template <int kKeyTiles, int kRowTiles>
__device__ __forceinline__ uint32_t visible_bits(const Visibility& visible, int i0, int j0,
                                                 int lane) {
  uint32_t bits = 0;
#pragma unroll
  for (int k = 0; k < kKeyTiles; ++k)
#pragma unroll
    for (int half = 0; half < 4; half += 2) {
      const int j = j0 + key_of_score(k, half, lane);
      const Visibility::Rows rows = visible.rows_of_keys(j, j + 1);
      const auto count = static_cast<unsigned>(rows.end - rows.begin);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int e = half; e < half + 2; ++e)
          if (static_cast<unsigned>(i0 + row_of_score(r, e, lane) - rows.begin) < count)
            bits |= 1u << score_bit<kRowTiles>(k, r, e);
    }
  return bits;
}

// Flags of the scores whose row and key have the same segment id.
template <int kKeyTiles, int kRowTiles>
__device__ __forceinline__ uint32_t same_segment_bits(const Visibility& visible,
                                                      const Segments& segments, int i0, int j0,
                                                      int lane) {
  uint32_t bits = 0;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      const int id = segments.q[min(i0 + row_of_score(r, column, lane), visible.q_len - 1)];
#pragma unroll
      for (int k = 0; k < kKeyTiles; ++k)
#pragma unroll
        for (int e = column; e < 4; e += 2)
          if (segments.k[min(j0 + key_of_score(k, e, lane), visible.kv_len - 1)] == id)
            bits |= 1u << score_bit<kRowTiles>(k, r, e);
    }
  return bits;
}

// The random words of two rows of score_row() parity 0 and 1 and of two keys, in the layout of a block of scores: word
// [r][k] has a lane's entries e = 2k and 2k + 1 of column block r in its halves. Lanes l and l + 4 have neighbouring keys, which
// share their words: each lane draws for one of the rows.
struct DropoutPairs {
  uint32_t at[2][2];

  // i: of the lane's entry 0, without the 8 of r; j: likewise, without the 8 of k.
  static __device__ __forceinline__ uint4 draw(const ScoreModifier& modify, int i, int j) {
    const int odd = j & 1;
    return modify.draw(i + odd, j - odd);
  }
  // drawn: for these or others of the block that share it. All lanes of the warp call it.
  __device__ __forceinline__ DropoutPairs(uint4 drawn, int i, int j) {
    const uint4 words = ScoreModifier::dropout_words(drawn, i >> 4, j >> 4);
    const uint32_t pick = j & 1 ? 0x3276 : 0x5410;
    const auto pair = [&](uint32_t own) {
      return __byte_perm(own, __shfl_xor_sync(0xffffffffu, own, 4), pick);
    };
    at[0][0] = pair(words.x), at[0][1] = pair(words.y);
    at[1][0] = pair(words.z), at[1][1] = pair(words.w);
  }
};

// Flags of the scores that dropout keeps.
template <int kKeyTiles, int kRowTiles>
__device__ __forceinline__ uint32_t kept_bits(const ScoreModifier& modify, int i0, int j0,
                                              int lane) {
  uint32_t bits = 0;
#pragma unroll
  for (int r = 0; r < kRowTiles; r += 2)
#pragma unroll
    for (int k = 0; k < kKeyTiles; ++k) {
      const int i = i0 + row_of_score(r, 0, lane), j = j0 + key_of_score(k, 0, lane);
      const DropoutPairs pairs(DropoutPairs::draw(modify, i, j), i, j);
#pragma unroll
      for (int row = 0; row < 2; ++row)
#pragma unroll
        for (int key = 0; key < 2; ++key) {
          const uint32_t word = pairs.at[row][key];
          if (!modify.drops_low(word)) bits |= 1u << score_bit<kRowTiles>(k, r + row, 2 * key);
          if (!modify.drops_high(word)) bits |= 1u << score_bit<kRowTiles>(k, r + row, 2 * key + 1);
        }
    }
  return bits;
}

// A lane's statistics of 16 rows, column blocks r and r + 1: entry [r % 2][e & 1]. `stats` is the
// shared address of the first row's.
struct RowStats {
  float at[2][2];
  __device__ __forceinline__ RowStats(uint32_t stats, int r, int lane) {
    const uint4 v = load_shared_16(stats + r * 32 + lane % 4 * 16);
    at[0][0] = __uint_as_float(v.x), at[0][1] = __uint_as_float(v.y);
    at[1][0] = __uint_as_float(v.z), at[1][1] = __uint_as_float(v.w);
  }
};

// The same where statistics lie in the order of the rows.
struct OrderedRowStats {
  float at[2][2];
  __device__ __forceinline__ OrderedRowStats(uint32_t stats, int r, int lane) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 v = load_shared_float2(stats + (r + i) * 32 + lane % 4 * 8);
      at[i][0] = v.x, at[i][1] = v.y;
    }
  }
};

// Calls f(k, r, e, stat) for every entry of a block, with the statistic of its row.
template <int kKeyTiles, int kRowTiles, class Stats = RowStats, class F>
__device__ __forceinline__ void for_scores_and_stats(uint32_t stats, int lane, F f) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    const Stats rows(stats, r & ~1, lane);
#pragma unroll
    for (int k = 0; k < kKeyTiles; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) f(k, r, e, rows.at[r & 1][e & 1]);
  }
}

// Hides the scores without a flag.
template <int kKeyTiles, int kRowTiles>
__device__ __forceinline__ void hide_scores(ScoreBlock<kKeyTiles, kRowTiles>& s, uint32_t visible) {
  for_scores<kKeyTiles, kRowTiles>([&](int k, int r, int e) {
    if (!is_set<kRowTiles>(visible, k, r, e)) s[k][r][e] = negative_infinity();
  });
}

// s = k.q becomes p, which weighs dout in dV.
template <int kKeyTiles, int kRowTiles>
__device__ __forceinline__ void scores_to_weights(ScoreBlock<kKeyTiles, kRowTiles>& s, float scale,
                                                  uint32_t lse, int lane) {
  for_scores_and_stats<kKeyTiles, kRowTiles>(lse, lane, [&](int k, int r, int e, float row_lse) {
    s[k][r][e] = exp2_approx(fmaf(s[k][r][e], scale, -row_lse));
  });
}

// d = dout.v becomes the gradient of scale * k.q.
template <int kKeyTiles, int kRowTiles>
__device__ __forceinline__ void weights_to_gradients(
    const ScoreBlock<kKeyTiles, kRowTiles>& weights, ScoreBlock<kKeyTiles, kRowTiles>& d,
    uint32_t delta, int lane) {
  for_scores_and_stats<kKeyTiles, kRowTiles>(
      delta, lane, [&](int k, int r, int e, float row_delta) {
        d[k][r][e] = weights[k][r][e] * (d[k][r][e] - row_delta);
      });
}

// The same through soft cap, ALiBi, bias and dropout, one pass over the block for each option of
// the call. s becomes p * keep / (1 - rate).
template <int kKeyTiles, int kRowTiles, class Stats = RowStats>
__device__ __forceinline__ void featured_score_gradients(ScoreBlock<kKeyTiles, kRowTiles>& s,
                                                         ScoreBlock<kKeyTiles, kRowTiles>& d,
                                                         const AttentionProblem& problem,
                                                         const ScoreModifier& modify,
                                                         uint32_t visible, uint32_t lse,
                                                         uint32_t delta, int i0, int j0, int lane) {
  const auto for_all = [](auto f) { for_scores<kKeyTiles, kRowTiles>(f); };
  const float scale = problem.soft_cap > 0.0f ? problem.scale : problem.scale * kLog2E;
  for_all([&](int k, int r, int e) { s[k][r][e] *= scale; });
  uint32_t kept = ~0u;
  if (problem.dropout_seed) {
    kept = kept_bits<kKeyTiles, kRowTiles>(modify, i0, j0, lane);
    const float up = problem.dropout_scale;
    for_all([&](int k, int r, int e) {
      d[k][r][e] = is_set<kRowTiles>(kept, k, r, e) ? d[k][r][e] * up : 0.0f;
    });
  }
  for_scores_and_stats<kKeyTiles, kRowTiles, Stats>(
      delta, lane, [&](int k, int r, int e, float row_delta) { d[k][r][e] -= row_delta; });
  if (problem.soft_cap > 0.0f) {
    const float cap = problem.soft_cap, inverse = 1.0f / cap;
    for_all([&](int k, int r, int e) {
      const float t = ScoreModifier::tanh_of(s[k][r][e] * inverse);
      s[k][r][e] = cap * kLog2E * t;
      d[k][r][e] *= 1.0f - t * t;
    });
  }
  if (problem.alibi_slopes) {
    const float slope = modify.slope;
    const int from_diagonal = i0 + modify.offset - j0;
    for_all([&](int k, int r, int e) {
      const int distance = from_diagonal + row_of_score(r, e, lane) - key_of_score(k, e, lane);
      s[k][r][e] -= slope * fabsf(static_cast<float>(distance));
    });
  }
  if (problem.bias.type != BiasType::kNone)
    modify.with_bias([&](auto bias_at) {
      for_all([&](int k, int r, int e) {
        if (is_set<kRowTiles>(visible, k, r, e))  // the others may lie outside
          s[k][r][e] += bias_at(i0 + row_of_score(r, e, lane), j0 + key_of_score(k, e, lane));
      });
    });
  for_scores_and_stats<kKeyTiles, kRowTiles, Stats>(
      lse, lane, [&](int k, int r, int e, float row_lse) {
        float p = exp2_approx(s[k][r][e] - row_lse);
        if (!is_set<kRowTiles>(visible, k, r, e)) p = 0.0f;
        s[k][r][e] = is_set<kRowTiles>(kept, k, r, e) ? p * problem.dropout_scale : 0.0f;
        d[k][r][e] *= p;
      });
}

}  // namespace jax_baracuda
