// From the scores of a block of keys to the weights of its values, in the registers of a computing warpgroup.
#pragma once

#include "attention/hopper/bias_pairs.cuh"
#include "attention/hopper/consumer_base.cuh"
#include "attention/hopper/logits.cuh"

#ifndef MODE
#define MODE 0
#endif
namespace jax_baracuda {

// Hides the keys from each row's end on: the causal diagonal and the end of the sequence. row_of(half): the row of the
// sequence.
template <int kN, class RowOf>
__device__ __forceinline__ void hide_end(Scores<1, kN>& s, const Visibility& visible, RowOf row_of,
                                         int j0, int lane) {
  const int column = j0 + score_column(0, 0, lane);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = row_of(half);
    const int end =
        (visible.causal ? min(visible.kv_len, i + visible.offset + 1) : visible.kv_len) - column;
#pragma unroll
    for (int n = 0; n < kN / 8; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (8 * n + e >= end) s[0][n][2 * half + e] = negative_infinity();
  }
}

// The largest of three numbers, by their bits. One instruction does it for integers: for numbers that are not all negative, and for
// negative ones.
struct Greatest {
  static __device__ __forceinline__ int of(int a, int b, int c) {
    return __float_as_int(fmaxf(fmaxf(__int_as_float(a), __int_as_float(b)), __int_as_float(c)));
  }
};
struct GreatestPositive {
  static __device__ __forceinline__ int of(int a, int b, int c) { return __vimax3_s32(a, b, c); }
};
struct GreatestNegative {
  static __device__ __forceinline__ int of(int a, int b, int c) {
    return static_cast<int>(__vimin3_u32(a, b, c));
  }
};

// Of a lane's scores of a row, and a number besides.
template <class Choice, int kN>
__device__ __forceinline__ int best_of_lane(const Scores<1, kN>& s, int half, float other) {
  const auto at = [&](int n, int e) { return __float_as_int(s[0][n][2 * half + e]); };
  int even = Choice::of(__float_as_int(other), at(0, 0), at(0, 1));
  int odd = Choice::of(at(1, 0), at(1, 1), at(1, 1));
#pragma unroll
  for (int n = 2; n < kN / 8; ++n) {
    int& best = n % 2 ? odd : even;
    best = Choice::of(best, at(n, 0), at(n, 1));
  }
  return Choice::of(even, odd, odd);
}
// Of the quad of lanes that has a row.
template <class Choice>
__device__ __forceinline__ int best_of_quad(int best) {
#pragma unroll
  for (int lanes = 1; lanes <= 2; lanes *= 2) {
    const int there = __shfl_xor_sync(0xffffffffu, best, lanes);
    best = Choice::of(best, there, there);
  }
  return best;
}
template <class Choice, int kN>
__device__ __forceinline__ int best_of_row(const Scores<1, kN>& s, int half, float other) {
  return best_of_quad<Choice>(best_of_lane<Choice, kN>(s, half, other));
}

template <class Traits>
struct ConsumerWeights : ConsumerBase<Traits> {
  using Base = ConsumerBase<Traits>;
  using Base::all, Base::control, Base::p, Base::scale, Base::tile_slot;
  using Base::place, Base::row_of, Base::ConsumerBase;
  using typename Base::Place;

  using T = typename Traits::T;
  static constexpr int kN = Traits::kN;
  using Weights = uint32_t[kN / 16][4];
  static constexpr float kTolerated = 8.0f;
  // Weights are found together with the hyperbolic tangents: the other tiles have no issue slots to win by it.
  static constexpr bool kCapsLate = Traits::kFeatures == kSoftCap && Traits::kDim > 64;

  __device__ __forceinline__ void mask(Scores<1, kN>& s, const KeyBlock& block) const {
    if (block.flags & kMasked) {
      const auto& tile = control.tile[tile_slot];
      const Place at = place();
      const auto row = [&](int half) { return row_of(tile, at, half); };
      const auto row_in_tile = [&](int, int half) { return row_of(tile, at, half); };
      if (block.flags & kEndMasked) hide_end<kN>(s, tile.visible, row, block.first_key, at.lane);
      if (block.flags & kPositionMasked)
        hide_by_position_of<1, kN>(s, tile.visible, row_in_tile, block.first_key, at.lane);
      if (!Traits::kPaged && block.flags & kSegmentMasked)
        hide_by_segment_of<1, kN>(s, Segments(p, tile.sequence), tile.visible.q_len,
                                  tile.visible.kv_len, row_in_tile, block.first_key, at.lane);
    }
  }

  // Soft cap, ALiBi and scale. Under a soft cap keys of a row share a reciprocal: hidden ones, which may be another sequence's,
  // are hidden before it, too, or a row's last bit would depend on them.
  __device__ __forceinline__ void modify(Scores<1, kN>& s, const KeyBlock& block) const {
    const auto& tile = control.tile[tile_slot];
    const auto [lane, warp_row] = place();
    if (p.soft_cap > 0.0f) mask(s, block);
    to_logits<kN>(s, p, tile.modify, tile.first_row + warp_row, block.first_key, lane);
  }
  // A 16-bit bias of a block that every row sees, two keys a word.
  template <class Low, class High>
  __device__ __forceinline__ void add_pairs(Scores<1, kN>& s, const char* at, int64_t stride,
                                            Low low, High high) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t pairs[kN / 8];
#pragma unroll
      for (int n = 0; n < kN / 8; ++n)
        pairs[n] = __ldg(reinterpret_cast<const uint32_t*>(at + 8 * half * stride + 16 * n));
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
        s[0][n][2 * half] += low(pairs[n]) * kLog2E;
        s[0][n][2 * half + 1] += high(pairs[n]) * kLog2E;
      }
    }
  }
  // Whether words are aligned and the bias was added.
  __device__ __forceinline__ bool add_whole_bias(Scores<1, kN>& s, const KeyBlock& block) const {
    const auto& tile = control.tile[tile_slot];
    const auto [lane, warp_row] = place();
    const int64_t stride = 2 * p.bias.row_stride;
    const char* at = static_cast<const char*>(tile.modify.bias.data) +
                     (tile.first_row + warp_row + score_row(0, 0, lane)) * stride +
                     2 * (block.first_key + score_column(0, 0, lane));
    if ((reinterpret_cast<uintptr_t>(at) | stride) % 4 != 0) return false;
    if (p.bias.type == BiasType::kBF16) {
      add_pairs(
          s, at, stride, [](uint32_t w) { return __uint_as_float(w << 16); },
          [](uint32_t w) { return __uint_as_float(w & 0xffff0000u); });
      return true;
    }
    if (p.bias.type != BiasType::kF16) return false;
    add_pairs(
        s, at, stride,
        [](uint32_t w) { return __half2float(__ushort_as_half(static_cast<unsigned short>(w))); },
        [](uint32_t w) {
          return __half2float(__ushort_as_half(static_cast<unsigned short>(w >> 16)));
        });
    return true;
  }
  // Looked up where scores are visible: the others may lie outside of it.
  __device__ __forceinline__ void add_bias(Scores<1, kN>& s, const KeyBlock& block) const {
    if (Traits::kPaged || p.bias.type == BiasType::kNone) return;
    if (!(block.flags & kMasked) && add_whole_bias(s, block)) return;
    const auto& tile = control.tile[tile_slot];
    const Place at = place();
    tile.modify.with_bias([&](auto bias_at) {
      for_visible<1, kN>(s, tile.first_row + at.warp_row, block.first_key, at.lane,
                         [&](float& x, int i, int j) { x += bias_at(i, j); });
    });
  }
  __device__ __forceinline__ void drop(Scores<1, kN>& s, const KeyBlock& block) const {
    if (Traits::kPaged || !p.dropout_seed) return;
    const auto& tile = control.tile[tile_slot];
    const auto [lane, warp_row] = place();
    drop_weights<1, kN>(s, tile.modify, tile.first_row + warp_row, block.first_key, lane);
  }

  // ALiBi. What is left is that scores lie `below` of what they should be, a number for each of the lane's rows: up to the
  // diagonal biases grow by a slope a key, and fall after it.
  __device__ __forceinline__ void slope(Scores<1, kN>& s, const KeyBlock& block,
                                        float (&below)[2]) const {
    const auto& tile = control.tile[tile_slot];
    const auto [lane, warp_row] = place();
    const float slope = tile.modify.slope;
    const int diagonal = tile.first_row + warp_row + tile.modify.offset;  // key of the first row
    const int distance =
        diagonal + score_row(0, 0, lane) - block.first_key - score_column(0, 0, lane);
    const float distances[2] = {static_cast<float>(distance), static_cast<float>(distance + 8)};
    const bool after = block.first_key >= diagonal + 15;
    if (p.causal || after || block.first_key + kN - 1 <= diagonal) {
      const float growth = after && !p.causal ? -slope : slope;
      add_columns<kN>(s, growth);
      below[0] = growth * distances[0];
      below[1] = growth * distances[1];
      return;
    }
    add_slope<kN>(s, 1.0f, slope, distances);
    below[0] = below[1] = 0.0f;
  }
  // Of scores before the hyperbolic tangent, or of a bias.
  __device__ __forceinline__ float factor() const {
    if constexpr (!Traits::kModifies)
      return 1.0f;
    else
      return control.tile[tile_slot].modify.scale;
  }
  // at: the block of the bias in shared memory.
  __device__ __forceinline__ void add_bias_block(Scores<1, kN>& s, uint32_t at) const {
    const auto [lane, warp_row] = place();
    const BiasPairs<typename Traits::Bias> pairs(at, warp_row, lane);
    if (p.bias.type == BiasType::kBF16)
      pairs.template add<__nv_bfloat16>(s, factor());
    else
      pairs.template add<__half>(s, factor());
  }

  // The largest number so far of each of the lane's two rows.
  static __device__ __forceinline__ void find_tops(const Scores<1, kN>& s,
                                                   const OnlineSoftmax<1>& softmax,
                                                   float (&tops)[2]) {
    using First = std::conditional_t<Traits::kIntegerMaxima, GreatestPositive, Greatest>;
    int bits[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      bits[half] = best_of_row<First, kN>(s, half, softmax.maximum[0][half]);
    // Rows that have seen nothing but negative numbers: few, and on a diagonal.
    if (Traits::kIntegerMaxima && __any_sync(0xffffffffu, (bits[0] | bits[1]) < 0)) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int top = best_of_row<GreatestNegative, kN>(s, half, softmax.maximum[0][half]);
        if (bits[half] < 0) bits[half] = top;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) tops[half] = __int_as_float(bits[half]);
  }

  // The same of the tangents of scores.
  static __device__ __forceinline__ void find_tangent_tops(const Scores<1, kN>& s,
                                                           const OnlineSoftmax<1>& softmax,
                                                           float factor, float (&tops)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int best = best_of_row<Greatest, kN>(s, half, negative_infinity());
      tops[half] = fmaxf(softmax.maximum[0][half], tanh_approx(__int_as_float(best) * factor));
    }
  }
  // And of scores that lie `below`: see slope().
  static __device__ __forceinline__ void find_raised_tops(const Scores<1, kN>& s,
                                                          const OnlineSoftmax<1>& softmax,
                                                          const float (&below)[2],
                                                          float (&tops)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int best = best_of_lane<Greatest, kN>(s, half, negative_infinity());
      const float raised = __int_as_float(best) - below[half];
      tops[half] = fmaxf(softmax.maximum[0][half],
                         __int_as_float(best_of_quad<Greatest>(__float_as_int(raised))));
    }
  }

  // A row's maximum, which moves to `top` when that is more than 2^kTolerated times larger: weights beyond 1 are as exact, and the
  // output is seldom rescaled. `rescale` is what the weights so far are to be multiplied with, `shift` what is subtracted from the
  // new ones' exponents. Whether it moves.
  __device__ __forceinline__ bool move_maximum(float& maximum, float top, float& rescale,
                                               float& shift) const {
    const float jump = (top - maximum) * scale;  // not a number as long as no key was seen
    const bool moves = jump > kTolerated;
    if (!moves) top = maximum;
    maximum = top;
    shift = top == negative_infinity() ? 0.0f : top * scale;
    // Exactly 1 for a row that did not move: another row of the warp, maybe another request's, may have.
    rescale = exp2_approx(moves ? -jump : 0.0f);
    return moves;
  }

  // Scores to weights. `rescale` is what the weights so far are to be multiplied with; returns whether that is anything but 1 in
  // some row of the warp. below: see slope(). kCaps: the scores are still those before the soft cap.
  template <bool kCaps>
  __device__ __forceinline__ bool weigh(Scores<1, kN>& s, OnlineSoftmax<1>& softmax,
                                        float (&rescale)[2], const float (&below)[2]) const {
    const float factor = kCaps ? this->factor() : 1.0f;
    float tops[2];
    if constexpr (kCaps)
      find_tangent_tops(s, softmax, factor, tops);
    else if constexpr (Traits::kFeatures == kAlibi)
      find_raised_tops(s, softmax, below, tops);
    else
      find_tops(s, softmax, tops);
    bool moved = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float shift;
      const bool moves = move_maximum(softmax.maximum[0][half], tops[half], rescale[half], shift);
      moved = moved || moves;
      if constexpr (Traits::kFeatures == kAlibi) shift += below[half] * scale;
      float sum0 = softmax.sum[0][half] * rescale[half], sum1 = 0.0f;
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
        float& a = s[0][n][2 * half];
        float& b = s[0][n][2 * half + 1];
        if constexpr (kCaps) {
          a = tanh_approx(a * factor);
          b = tanh_approx(b * factor);
        }
        a = exp2_approx(a * scale - shift);
        b = exp2_approx(b * scale - shift);
        sum0 += a;
        sum1 += b;
      }
      softmax.sum[0][half] = sum0 + sum1;
    }
    return __any_sync(0xffffffffu, moved);
  }

  uint4 drawn[kN / 32];
  __device__ __forceinline__ void draw_early(const KeyBlock& block) {
#if MODE == 5
    if constexpr (Traits::kFeatures == kDropout) {
      const auto& tile = control.tile[tile_slot];
      const auto [lane, warp_row] = place();
#pragma unroll
      for (int n = 0; n < kN / 32; ++n) {
        drawn[n] = tile.modify.draw(tile.first_row + warp_row + score_row(0, 0, lane), block.first_key + score_column(4 * n, 0, lane));
        asm volatile(
        "{\n .reg .pred p;\n .reg .u32 x;\n lop3.b32 x, %0, %1, %2, 0x96;\n xor.b32 x, x, %3;\n setp.eq.u32 p, x, 0x12345678;\n @p nanosleep.u32 20;\n}\n" ::"r"(drawn[n].x),"r"(drawn[n].y),"r"(drawn[n].z),"r"(drawn[n].w)
        : "memory");
      }
    }
#endif
  }
  // The same with dropout, which makes pairs of 16 bits of what it keeps, in the place of their first weights. Its random words are
  // drawn between the exponentials, which have another unit.
  __device__ __forceinline__ bool weigh_and_drop(Scores<1, kN>& s, const KeyBlock& block,
                                                 OnlineSoftmax<1>& softmax,
                                                 float (&rescale)[2]) const {
    float tops[2], shift[2], sums[2][2];
    find_tops(s, softmax, tops);
    bool moved = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool moves =
          move_maximum(softmax.maximum[0][half], tops[half], rescale[half], shift[half]);
      moved = moved || moves;
      sums[half][0] = softmax.sum[0][half] * rescale[half];
      sums[half][1] = 0.0f;
    }
    const auto& tile = control.tile[tile_slot];
    const ScoreModifier& modify = tile.modify;
    const auto [lane, warp_row] = place();
    const int row = tile.first_row + warp_row + score_row(0, 0, lane),
              column = block.first_key + score_column(0, 0, lane);
    const uint32_t thresholds = modify.threshold * 0x10001;
    [[maybe_unused]] const auto weigh_group = [&](int n) {
#pragma unroll
      for (int m = n; m < n + 4; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = s[0][m][2 * half + e];
            x = exp2_approx(x * scale - shift[half]);
            sums[half][e] += x;
          }
    };
    const auto drop_group = [&](int n, const uint4 (&words)[2]) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const uint4& w = words[m / 2];
        const uint32_t of_half[2] = {m % 2 ? w.y : w.x, m % 2 ? w.w : w.z};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float* pair = &s[0][n + m][2 * half];
          pair[0] = __uint_as_float(pack_pair<T>(pair[0], pair[1]));
          pair[1] = __uint_as_float(kept_halves(of_half[half], thresholds));
        }
      }
    };
#if MODE == 0
#pragma unroll
    for (int n = 0; n < kN / 8; n += 4) {
      uint4 words[2];
      modify.dropout_words(row, column + 8 * n, words);
      weigh_group(n);
      drop_group(n, words);
    }
#elif MODE == 1  // after
#pragma unroll
    for (int n = 0; n < kN / 8; n += 4) weigh_group(n);
#pragma unroll
    for (int n = 0; n < kN / 8; n += 4) {
      uint4 words[2];
      modify.dropout_words(row, column + 8 * n, words);
      drop_group(n, words);
    }
#elif MODE == 5  // drawn before
#pragma unroll
    for (int n = 0; n < kN / 8; n += 4) weigh_group(n);
#pragma unroll
    for (int n = 0; n < kN / 8; n += 4) {
      const uint4 words[2] = {drawn[n / 4], ScoreModifier::mix_words(drawn[n / 4], kDropoutMix)};
      drop_group(n, words);
    }
#elif MODE == 6 || MODE == 7  // interleaved
    const uint32_t zero = modify.threshold >> 15;
#pragma unroll
    for (int n = 0; n < kN / 8; n += 4) {
      const int j = column + 8 * n;
      uint4 c = make_uint4((row >> 4) * 8 + (row & 7), (j >> 5) * 4 + (j >> 1 & 3), modify.head, modify.batch);
      uint2 k = modify.seed;
      int at = 0;
#pragma unroll
      for (int round = 0; round < 7; ++round) {
        philox_round(c, k);
        const int half = round % 2;
        if (round % 2 == 0 || MODE == 6)
        shift[half] = __uint_as_float(__float_as_uint(shift[half]) ^ (c.x & zero));
        const int many = (round + 1) * 16 / 7;
#pragma unroll
        for (; at < many; ++at) {
          const int h = at / 2 % 2;
          float& x = s[0][n + at / 4][2 * h + at % 2];
          x = exp2_approx(x * scale - shift[h]);
          sums[h][at % 2] += x;
        }
      }
      const uint4 words[2] = {c, ScoreModifier::mix_words(c, kDropoutMix)};
      drop_group(n, words);
    }
#endif
#pragma unroll
    for (int half = 0; half < 2; ++half) softmax.sum[0][half] = sums[half][0] + sums[half][1];
    return __any_sync(0xffffffffu, moved);
  }

  // Where dropout is alone, weigh_and_drop() has made pairs.
  static __device__ __forceinline__ uint32_t weights_of(float first, float second) {
    if constexpr (Traits::kFeatures == kDropout)
      return __float_as_uint(first) & __float_as_uint(second);
    else
      return pack_pair<T>(first, second);
  }
  static __device__ __forceinline__ void pack(const Scores<1, kN>& s, Weights& weights) {
#pragma unroll
    for (int n = 0; n < kN / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        weights[n / 2][n % 2 * 2 + half] = weights_of(s[0][n][2 * half], s[0][n][2 * half + 1]);
  }

  // From products to weights, as weigh().
  __device__ __forceinline__ bool score(Scores<1, kN>& s, const KeyBlock& block,
                                        OnlineSoftmax<1>& softmax, float (&rescale)[2]) const {
    float below[2];
    if constexpr (Traits::kAnything) modify(s, block);
    if constexpr (Traits::kFeatures == kAlibi) slope(s, block, below);
    if constexpr (Traits::kFeatures == kSoftCap) {
      if (kCapsLate && !(block.flags & kMasked)) return weigh<true>(s, softmax, rescale, below);
      to_tangents<kN>(s, factor());
    }
    mask(s, block);
    if constexpr (Traits::kAnything) add_bias(s, block);
    if constexpr (Traits::kFeatures == kDropout) return weigh_and_drop(s, block, softmax, rescale);
    const bool moved = weigh<false>(s, softmax, rescale, below);
    if constexpr (Traits::kAnything) drop(s, block);
    return moved;
  }
};

}  // namespace jax_baracuda
