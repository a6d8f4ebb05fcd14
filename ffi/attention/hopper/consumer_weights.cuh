// From the scores of a block of keys to the weights of its values, in the registers of a computing warpgroup.
#pragma once

#include <climits>

#include "attention/hopper/bias_pairs.cuh"
#include "attention/hopper/consumer_base.cuh"
#include "attention/hopper/logits.cuh"

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

// Hides the keys of other segments than the row's. A bit of each of the lane's scores is found first, some keys at a time: as long
// as a product with values is under way, registers are too few to have all ids at once.
template <int kN, class RowOf>
__device__ __forceinline__ void hide_other_segments(Scores<1, kN>& s, const Segments& segments,
                                                    int rows, int keys, RowOf row_of, int j0,
                                                    int lane) {
  static_assert(kN <= 128, "a word has the bits of a row");
  const int own[2] = {segments.q[min(row_of(0), rows - 1)], segments.q[min(row_of(1), rows - 1)]};
  uint32_t others[2] = {0, 0};
#pragma unroll 4
  for (int bit = 0; bit < kN / 4; ++bit) {
    const int id = segments.k[min(j0 + score_column(bit / 2, bit % 2, lane), keys - 1)];
    others[0] |= static_cast<uint32_t>(id != own[0]) << bit;
    others[1] |= static_cast<uint32_t>(id != own[1]) << bit;
  }
#pragma unroll
  for (int n = 0; n < kN / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (others[e / 2] >> (2 * n + e % 2) & 1) s[0][n][e] = negative_infinity();
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
  using Base::all, Base::control, Base::kTolerated, Base::p, Base::room, Base::scale,
      Base::tile_slot;
  using Base::place, Base::row_of, Base::ConsumerBase;
  using typename Base::Place;

  using T = typename Traits::T;
  static constexpr int kN = Traits::kN;
  using Weights = uint32_t[kN / 16][4];
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
      if (!Traits::kPaged && block.flags & kSegmentMasked) {
        const Segments segments(p, tile.sequence);
        const int rows = tile.visible.q_len, keys = tile.visible.kv_len;
        if constexpr (Traits::kFewRegisters)
          hide_other_segments<kN>(s, segments, rows, keys, row, block.first_key, at.lane);
        else
          hide_by_segment_of<1, kN>(s, segments, rows, keys, row_in_tile, block.first_key, at.lane);
      }
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
  // Dropout alone. What is known of the lane's rows is found before the first scores of a tile. Two CTAs an SM have no registers for
  // it.
  static constexpr bool kDrops = Traits::kFeatures == kDropout;
  static constexpr bool kHoldsDropout = kDrops && !Traits::kTwoCtas;
  RowDropout dropout;
  __device__ __forceinline__ RowDropout row_dropout() const {
    const auto& tile = control.tile[tile_slot];
    const auto [lane, warp_row] = place();
    return RowDropout(tile.modify, tile.first_row + warp_row + score_row(0, 0, lane));
  }
  __device__ __forceinline__ void begin_rows() {
    if constexpr (kHoldsDropout) {
      dropout = row_dropout();
      dropout.hold();
    }
  }
  __device__ __forceinline__ void drop(Scores<1, kN>& s, const KeyBlock& block) const {
    const auto [lane, warp_row] = place();
    if constexpr (kHoldsDropout) {
      find_kept_pairs<T, kN>(s, dropout, block.first_key, lane);
    } else if constexpr (kDrops) {
      find_kept_pairs<T, kN>(s, row_dropout(), block.first_key, lane);
    } else if (!Traits::kPaged && p.dropout_seed) {
      const auto& tile = control.tile[tile_slot];
      drop_weights<1, kN>(s, tile.modify, tile.first_row + warp_row, block.first_key, lane);
    }
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

  // Of each of the lane's two rows its largest score, by its bits if it is positive; whether one in the warp may move its row's
  // maximum. As long as none does, lanes need not know of each other's scores.
  __device__ __forceinline__ bool may_move(const Scores<1, kN>& s, const OnlineSoftmax<1>& softmax,
                                           int (&best)[2]) const {
    bool may = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      best[half] = best_of_lane<GreatestPositive, kN>(s, half, s[0][0][2 * half]);
      const int limit = __float_as_int(softmax.maximum[0][half] + room);
      may = may || best[half] >= (limit < 0 ? INT_MIN : limit);  // bits tell nothing below zero
    }
    return __any_sync(0xffffffffu, may);
  }

  // The largest number so far of each of the lane's two rows. best: the lane's own, where may_move() has found them.
  static __device__ __forceinline__ void find_tops(const Scores<1, kN>& s,
                                                   const OnlineSoftmax<1>& softmax,
                                                   const int (&best)[2], float (&tops)[2]) {
    using First = std::conditional_t<Traits::kIntegerMaxima, GreatestPositive, Greatest>;
    int bits[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int before = __float_as_int(softmax.maximum[0][half]);
      if constexpr (Traits::kQuickMaxima)
        bits[half] = best_of_quad<First>(First::of(best[half], before, before));
      else
        bits[half] = best_of_row<First, kN>(s, half, softmax.maximum[0][half]);
    }
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

  // Moves the maxima of the rows that have a score more than 2^kTolerated times larger. `rescale` is what the weights so far are to
  // be multiplied with; returns whether that is anything but 1 in some row of the warp.
  __device__ __forceinline__ bool move_maxima(const float (&tops)[2], OnlineSoftmax<1>& softmax,
                                              float (&rescale)[2]) const {
    bool moved = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float before = softmax.maximum[0][half];
      const float jump = (tops[half] - before) * scale;  // not a number as long as no key was seen
      const bool moves = jump > kTolerated;
      if (moves) softmax.maximum[0][half] = tops[half];
      moved = moved || moves;
      // Exactly 1 for a row that did not move: another row of the warp, maybe another request's, may have.
      rescale[half] = exp2_approx(moves ? -jump : 0.0f);
      // Rounded by itself in all tiles, or their bits would differ.
      softmax.sum[0][half] = __fmul_rn(softmax.sum[0][half], rescale[half]);
    }
    return __any_sync(0xffffffffu, moved);
  }

  // The scores of blocks of 8 keys, kFirst and those up to kEnd, to weights, and their sums.
  template <bool kCaps, int kFirst, int kEnd>
  __device__ __forceinline__ void exponentiate(Scores<1, kN>& s, const float (&shift)[2],
                                               float (&sums)[2][2]) const {
    const float factor = kCaps ? this->factor() : 1.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = kFirst; n < kEnd; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[0][n][2 * half + e];
          if constexpr (kCaps) x = tanh_approx(x * factor);
          x = exp2_approx(x * scale - shift[half]);
          sums[half][e] += x;
        }
  }

  // Scores to weights. A maximum moves when a score is more than 2^kTolerated times larger: weights beyond 1 are as
  // exact, and the output is seldom rescaled. rescale, and what is returned: see move_maxima(). below: see slope(). kCaps: the scores
  // are still those before the soft cap. after_first: what to do when the weights of the first 16 keys are found; it gets one
  // of them.
  template <bool kCaps, class AfterFirst>
  __device__ __forceinline__ bool weigh(Scores<1, kN>& s, OnlineSoftmax<1>& softmax,
                                        float (&rescale)[2], const float (&below)[2],
                                        AfterFirst after_first) const {
    int best[2];
    bool moved = false;
    rescale[0] = rescale[1] = 1.0f;
    if (!Traits::kQuickMaxima || may_move(s, softmax, best)) {
      float tops[2];
      if constexpr (kCaps)
        find_tangent_tops(s, softmax, this->factor(), tops);
      else if constexpr (Traits::kFeatures == kAlibi)
        find_raised_tops(s, softmax, below, tops);
      else
        find_tops(s, softmax, best, tops);
      moved = move_maxima(tops, softmax, rescale);
    }
    float shift[2], sums[2][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float top = softmax.maximum[0][half];
      shift[half] = top == negative_infinity() ? 0.0f : top * scale;
      if constexpr (Traits::kFeatures == kAlibi) shift[half] += below[half] * scale;
      sums[half][0] = softmax.sum[0][half];
      sums[half][1] = 0.0f;
    }
    exponentiate<kCaps, 0, 2>(s, shift, sums);
    after_first(s[0][1][3]);
    exponentiate<kCaps, 2, kN / 8>(s, shift, sums);
#pragma unroll
    for (int half = 0; half < 2; ++half) softmax.sum[0][half] = sums[half][0] + sums[half][1];
    return moved;
  }

  // Whether all scores of the warp are small enough for the polynomial. Above zero the largest number has the largest bits, and below it
  // the least.
  __device__ __forceinline__ bool are_small(const Scores<1, kN>& s) const {
    int most = 0;
    unsigned least = 0;
#pragma unroll
    for (int n = 0; n < kN / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        const int a = __float_as_int(s[0][n][e]), b = __float_as_int(s[0][n][e + 1]);
        most = __vimax3_s32(most, a, b);
        least = __vimax3_u32(least, a, b);
      }
    const int magnitude = max(most, static_cast<int>(least & 0x7fffffff));
    return __all_sync(0xffffffffu, magnitude <= all.cap.most_bits);
  }
  template <class ToExponent>
  static __device__ __forceinline__ void raise(Scores<1, kN>& s, OnlineSoftmax<1>& softmax,
                                               ToExponent to_exponent) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum0 = softmax.sum[0][half], sum1 = 0.0f;
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
        float& a = s[0][n][2 * half];
        float& b = s[0][n][2 * half + 1];
        a = exp2_approx(to_exponent(a));
        b = exp2_approx(to_exponent(b));
        sum0 += a;
        sum1 += b;
      }
      softmax.sum[0][half] = sum0 + sum1;
    }
  }
  // Scores to weights under a soft cap that needs no maxima: see CapExponents. What masks hide, and rows that are not the sequence's,
  // have no say in how tangents are found.
  __device__ __forceinline__ void weigh_bounded(Scores<1, kN>& s, const KeyBlock& block,
                                                OnlineSoftmax<1>& softmax) const {
    const CapExponents& cap = all.cap;
    if (!__any_sync(0xffffffffu, block.flags & (kMasked | kForeignRows)) && are_small(s)) {
      raise(s, softmax, [&](float x) {
        const float square = x * x;
        return x * ((cap.quintic * square + cap.cubic) * square + cap.linear);
      });
      return;
    }
    to_tangents<kN>(s, cap.factor);
    mask(s, block);
    raise(s, softmax, [&](float x) { return x * cap.scale; });
  }

  // Where dropout is alone, drop() has made pairs and masks.
  static __device__ __forceinline__ uint32_t weights_of(float first, float second) {
    if constexpr (Traits::kFeatures == kDropout)
      return __float_as_uint(first) & __float_as_uint(second);
    else
      return pack_pair<T>(first, second);
  }
  // They are not to be found between the products that take them.
  static __device__ __forceinline__ void hold_weights(Weights& weights) {
#pragma unroll
    for (int n = 0; n < kN / 16; ++n)
      asm volatile(""
                   : "+r"(weights[n][0]), "+r"(weights[n][1]), "+r"(weights[n][2]),
                     "+r"(weights[n][3]));
  }
  static __device__ __forceinline__ void pack(const Scores<1, kN>& s, Weights& weights) {
#pragma unroll
    for (int n = 0; n < kN / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        weights[n / 2][n % 2 * 2 + half] = weights_of(s[0][n][2 * half], s[0][n][2 * half + 1]);
    if constexpr (kDrops && Traits::kTwoCtas) hold_weights(weights);
  }

  // From products to weights, as weigh().
  template <class AfterFirst>
  __device__ __forceinline__ bool score(Scores<1, kN>& s, const KeyBlock& block,
                                        OnlineSoftmax<1>& softmax, float (&rescale)[2],
                                        AfterFirst after_first) const {
    if constexpr (Traits::kBounded) {
      weigh_bounded(s, block, softmax);
      return false;
    }
    float below[2];
    if constexpr (Traits::kAnything) modify(s, block);
    if constexpr (Traits::kFeatures == kAlibi) slope(s, block, below);
    if constexpr (Traits::kFeatures == kSoftCap) {
      if (kCapsLate && !(block.flags & kMasked))
        return weigh<true>(s, softmax, rescale, below, after_first);
      to_tangents<kN>(s, factor());
    }
    mask(s, block);
    if constexpr (Traits::kAnything) add_bias(s, block);
    const bool moved = weigh<false>(s, softmax, rescale, below, after_first);
    if constexpr (Traits::kFeatures & kDropout) drop(s, block);
    return moved;
  }
};

}  // namespace jax_baracuda
