// From products to weights and gradients, where they lie: a block of scores with keys along the rows.
#pragma once

#include "attention/score.cuh"
#include "attention/sequence.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

// What a block of scores needs to know, all of it the same for the CTA.
struct ScoreContext {
  const Visibility* visible;
  const Segments* segments;
  const ScoreModifier* modify;  // kFeatures only
  float scale;                  // times log2(e)
  bool by_segment;              // ids differ within the block
  bool dropout;
  float dropout_scale;
};

// Rows that see the keys of a lane, kKeyTiles times two of them.
template <int kKeyTiles>
struct KeyView {
  int begin[kKeyTiles][2];
  unsigned count[kKeyTiles][2];
  int segment[kKeyTiles][2];

  __device__ __forceinline__ void look(const ScoreContext& c, int j0, int lane) {
#pragma unroll
    for (int k = 0; k < kKeyTiles; ++k)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int j = j0 + 16 * k + 8 * half + lane / 4;
        const Visibility::Rows rows = c.visible->rows_of_keys(j, j + 1);
        begin[k][half] = rows.begin;
        count[k][half] = static_cast<unsigned>(rows.end - rows.begin);
        segment[k][half] = c.by_segment && j < c.visible->kv_len ? c.segments->k[j] : 0;
      }
  }
};

// s = k.q and d = dout.v become p * keep / (1 - rate), which weighs dout in dV, and the gradient of scale * k.q.
// `stats`: shared address of (lse, delta) of row i0. The block is kKeyTiles x 16 keys from j0, kRowTiles x 8 rows.
template <bool kFeatures, bool kMasked, int kKeyTiles, int kRowTiles>
__device__ __forceinline__ void score_gradients(float (&s)[kKeyTiles][kRowTiles][4],
                                                float (&d)[kKeyTiles][kRowTiles][4],
                                                const ScoreContext& c, uint32_t stats, int i0, int j0,
                                                int lane) {
  KeyView<kKeyTiles> view;
  if constexpr (kMasked) view.look(c, j0, lane);
#pragma unroll
  for (int r = 0; r < kRowTiles; r += 2) {
    uint4 row_stats[2];  // lse, delta of two neighbouring rows
    int segment[2][2];
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int row = 8 * (r + b) + 2 * (lane % 4);
      row_stats[b] = load_shared_16(stats + row * 8);
      if (kMasked && c.by_segment)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          segment[b][e] = i0 + row + e < c.visible->q_len ? c.segments->q[i0 + row + e] : 0;
    }
#pragma unroll
    for (int k = 0; k < kKeyTiles; ++k) {
      const int i_first = i0 + 8 * r + 2 * (lane % 4), j_first = j0 + 16 * k + lane / 4;
      uint32_t words[2][4];  // of rows i, i + 1: rows + {0, 8} by keys + {0, 8}
      if (kFeatures && c.dropout)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const uint4 w = c.modify->dropout_words(i_first + e, j_first);
          words[e][0] = w.x, words[e][1] = w.y, words[e][2] = w.z, words[e][3] = w.w;
        }
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = e & 1, half = e >> 1;
          const int i = i_first + 8 * b + column, j = j_first + 8 * half;
          const float lse = __uint_as_float(column ? row_stats[b].z : row_stats[b].x);
          const float delta = __uint_as_float(column ? row_stats[b].w : row_stats[b].y);
          float& weight = s[k][r + b][e];
          float& gradient = d[k][r + b][e];
          bool seen = true;
          if constexpr (kMasked) {
            seen = static_cast<unsigned>(i - view.begin[k][half]) < view.count[k][half];
            if (c.by_segment) seen = seen && segment[b][column] == view.segment[k][half];
          }
          if constexpr (kFeatures) {
            float probability = 0.0f, slope = 0.0f;  // what is hidden may lie outside the bias
            if (seen) probability = exp2_approx((*c.modify)(weight, i, j, &slope) - lse);
            float keep = c.dropout_scale;
            if (c.dropout && words[column][2 * b + half] < c.modify->threshold) keep = 0.0f;
            weight = probability * keep;
            gradient = probability * (keep * gradient - delta) * slope;
          } else {
            weight = seen ? exp2_approx(fmaf(weight, c.scale, -lse)) : 0.0f;
            gradient = weight * (gradient - delta);
          }
        }
    }
  }
}

}  // namespace jax_baracuda
