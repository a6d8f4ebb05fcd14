// What soft cap, ALiBi and scale make of a block of products, in the registers of a computing warpgroup. They change every
// score, hidden ones too, so that none is looked at: the mask comes after them.
#pragma once

#include "attention/forward/softmax.cuh"

namespace jax_baracuda {

__device__ __forceinline__ float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// Turns each number into one over it: four numbers from 1 to 2^31 share a reciprocal, which is what there is least of.
__device__ __forceinline__ void invert(float (&x)[4]) {
  const float first = x[0], third = x[2];
  const float low = first * x[1], high = third * x[3];
  const float all = reciprocal_approx(low * high);
  const float of_low = all * high, of_high = all * low;
  x[0] = of_low * x[1];
  x[1] = of_low * first;
  x[2] = of_high * x[3];
  x[3] = of_high * third;
}

// cap * tanh(scale * s / cap) in base 2. tanh(y) = 1 - 2 / (1 + exp(2y)), which is 1 in float32 long before the exponent
// is at its bound. The bound also keeps what is not a number from its neighbours. Those who share a reciprocal are keys of one
// row: what a row gets must not depend on the rows beside it, which other requests may have.
template <int kN>
__device__ __forceinline__ void cap_scores(Scores<1, kN>& s, float scale, float cap) {
  static_assert(kN % 16 == 0);
  constexpr float kMostExponent = 30.0f;
  const float to_exponent = scale / cap * (2.0f * kLog2E), most = cap * kLog2E;
#pragma unroll
  for (int n = 0; n < kN / 8; n += 2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float score = s[0][n + e / 2][2 * half + e % 2];
        x[e] = 1.0f + exp2_approx(fminf(score * to_exponent, kMostExponent));
      }
      invert(x);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& score = s[0][n + e / 2][2 * half + e % 2];
        if (score == score) score = most - 2.0f * most * x[e];
      }
    }
  }
}

// scale * s - slope * distance; `distances` are those of the lane's two rows from its first column.
template <int kN>
__device__ __forceinline__ void add_slope(Scores<1, kN>& s, float scale, float slope,
                                          const float (&distances)[2]) {
#pragma unroll
  for (int n = 0; n < kN / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float distance = distances[e >> 1] - static_cast<float>(8 * n + (e & 1));
      s[0][n][e] = s[0][n][e] * scale - slope * fabsf(distance);
    }
}

// tanh(factor * s) to 11 bits: a soft cap alone is in the factors then.
template <int kN>
__device__ __forceinline__ void to_tangents(Scores<1, kN>& s, float factor) {
#pragma unroll
  for (int n = 0; n < kN / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) s[0][n][e] = tanh_approx(s[0][n][e] * factor);
}

// Of each half of a random word all bits, if it keeps its element, or none. 15 bits compare as the float16 numbers that they
// are; what is not a number is above all thresholds up to kMostThreshold.
__device__ __forceinline__ uint32_t kept_halves(uint32_t word, uint32_t thresholds) {
  uint32_t mask;
  asm("{\n .reg .b32 magnitudes;\n abs.f16x2 magnitudes, %1;\n"
      " set.geu.u32.f16x2 %0, magnitudes, %2;\n}\n"
      : "=r"(mask)
      : "r"(word), "r"(thresholds));
  return mask;
}

// What dropout needs to know of a lane's two rows, i and i + 8.
struct RowDropout {
  PhiloxOfSecondWord draw;  // of a column
  uint32_t factors[4];      // of 16 keys each
  uint32_t thresholds;

  RowDropout() = default;
  __device__ __forceinline__ RowDropout(const ScoreModifier& modify, int i)
      : draw(ScoreModifier::dropout_row(i), modify.head, modify.batch, modify.seed),
        thresholds(modify.threshold * 0x10001) {
#pragma unroll
    for (int n = 0; n < 4; ++n) factors[n] = ScoreModifier::dropout_factor(i >> 4, n);
  }

  // Keeps the compiler from finding it anew for every block of keys.
  __device__ __forceinline__ void hold() {
    draw.hold();
    asm volatile(""
                 : "+r"(factors[0]), "+r"(factors[1]), "+r"(factors[2]), "+r"(factors[3]),
                   "+r"(thresholds));
  }
};

// Weights to pairs in 16 bits, each in the place of its first weight, and the masks of what dropout keeps of them, in the place of
// the second. j0, the first key, is a multiple of kN.
template <class T, int kN>
__device__ __forceinline__ void find_kept_pairs(Scores<1, kN>& s, const RowDropout& dropout, int j0,
                                                int lane) {
  static_assert(kN % 64 == 0);
  const auto keep = [&](float* pair, uint32_t word) {
    pair[0] = __uint_as_float(pack_pair<T>(pair[0], pair[1]));
    pair[1] = __uint_as_float(kept_halves(word, dropout.thresholds));
  };
  uint4 drawn;
#pragma unroll
  for (int n = 0; n < kN / 8; n += 2) {
    if (n % 8 == 0)
      drawn = dropout.draw(ScoreModifier::dropout_column(j0 + score_column(n, 0, lane)));
    const uint4 words = ScoreModifier::mix_words(drawn, dropout.factors[n / 2 % 4]);
    keep(&s[0][n][0], words.x);
    keep(&s[0][n + 1][0], words.y);
    keep(&s[0][n][2], words.z);
    keep(&s[0][n + 1][2], words.w);
  }
}

// Adds slope * column, counted from the lane's first one, to each score.
template <int kN>
__device__ __forceinline__ void add_columns(Scores<1, kN>& s, float slope) {
#pragma unroll
  for (int n = 0; n < kN / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) s[0][n][e] += slope * static_cast<float>(8 * n + (e & 1));
}

template <int kN>
__device__ __forceinline__ void scale_scores(Scores<1, kN>& s, float scale) {
#pragma unroll
  for (int n = 0; n < kN / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) s[0][n][e] *= scale;
}

// Products to logits in base 2, but for the bias. i0: first row of the warp; j0: first key of the block.
template <int kN>
__device__ __forceinline__ void to_logits(Scores<1, kN>& s, const AttentionProblem& p,
                                          const ScoreModifier& modify, int i0, int j0, int lane) {
  const bool capped = p.soft_cap > 0.0f;
  const float scale = capped ? 1.0f : p.scale * kLog2E;
  if (capped) cap_scores<kN>(s, p.scale, p.soft_cap);
  if (p.alibi_slopes) {
    const int distance = i0 + score_row(0, 0, lane) + modify.offset - j0 - score_column(0, 0, lane);
    const float distances[2] = {static_cast<float>(distance), static_cast<float>(distance + 8)};
    add_slope<kN>(s, scale, modify.slope, distances);
  } else if (!capped) {
    scale_scores<kN>(s, scale);
  }
}

}  // namespace jax_baracuda
