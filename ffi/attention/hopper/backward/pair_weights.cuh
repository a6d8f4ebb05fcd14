// The first consumer warpgroup of a CTA of a pair: scores S^T = K Q^T of its 64 keys, weights, dV += P^T dO. What the
// tensor cores get from it, of row block i:
//   dQ(i - 1), S(i + 1), dV(i) | dQ(i), S(i + 2), dV(i + 1) ...     or, kValuesFirst, dV(i), dQ(i - 1), S(i + 1) | ...
// It computes P(i + 1) with dV(i) under way, and hands weights over to the second warpgroup.
#pragma once

#include "attention/hopper/backward/pair_group.cuh"
#include "device/math.cuh"

namespace jax_baracuda {

template <class Traits>
struct PairWeights : PairGroup<Traits, 0> {
  using Base = PairGroup<Traits, 0>;
  using Base::Base, Base::control, Base::count, Base::lane, Base::p, Base::query_stage, Base::rank,
      Base::shared, Base::tiles, Base::wait, Base::warp;
  using typename Base::DOut;
  using typename Base::Key;
  using typename Base::OtherKey;
  using typename Base::Query;
  using typename Base::T;
  static constexpr int kRows = Traits::kRows;
  static constexpr bool kValuesFirst = Traits::kValuesFirst;
  static constexpr int kOption = Traits::kOption;
  using Option = BlockOption<Traits>;

  struct State {
    typename Base::Scores s;
    typename Base::Operand weights;
    typename Base::QuerySum dq;
    float dv[Traits::kDimV / 2];
    typename Base::Operand factors;  // with a soft cap
  };

  // Of row block number `count`.
  __device__ __forceinline__ void issue_scores(State& r, const KeyTile& tile,
                                               uint32_t count) const {
    const RowBlock& block = this->wait_query(count);
    const uint32_t query = this->query_address(count);
    if (block.flags & kPaddedRows)
      this->template clear<Query>(query, tile.visible.q_len - block.first_row);
    warpgroup_arrive();
    multiply_rows<T, Key, Query>(r.s, shared, query);
    warpgroup_commit();
  }
  __device__ __forceinline__ void issue_value_gradient(State& r, const KeyTile& tile,
                                                       bool accumulate) const {
    this->wait_dout(tile, control.block[query_stage(count)]);
    warpgroup_arrive();
    multiply_weights<T, DOut, kRows>(r.dv, r.weights, this->dout_address(), accumulate);
    warpgroup_commit();
  }

  // After dV of row block number `count`.
  __device__ __forceinline__ void release_dout(uint32_t count) const {
    this->release_in_both(control.dout_empty[this->dout_stage(count)]);
  }

  __device__ __forceinline__ Option option_of(const KeyTile& tile, const RowBlock& block) const {
    const int key = tile.first_key + Traits::kCtaKeys * rank() + 16 * warp + lane / 4;
    HeadOption<kOption> of_head;
    of_head.find(p, tile, block.head, key);
    return Option(p, tile, block, of_head, rank(), key, lane);
  }
  // Scores to weights, in place, with the option of the call.
  __device__ __forceinline__ void weigh_with(State& r, const Option& option) const {
    const uint32_t lse = shared + Traits::kLseOffset + this->stat_offset();
    const float scale = p.scale * kLog2E;
    if constexpr (kOption == 0 || kOption == kDropout) {
      weigh<Traits>(r.s, scale, lse);
    } else {
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) {
        if constexpr (kOption == kSoftCap)
          option.weigh(i, r.s, lse, r.factors[i]);
        else
          option.terms.template weigh<Traits>(i, r.s, scale, lse);
      }
    }
  }
  // Hands over what the gradients of rows 16i .. 16i + 15 need: weights, those that dropout drops with a sign, or factors. What was
  // dropped is zero from here on.
  __device__ __forceinline__ void hand_over(State& r, const Option& option, int i) const {
    uint32_t words[4];
    if constexpr (kOption == kDropout) option.find_kept(i, words);
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t& weights = r.weights[i][pair];
      if constexpr (kOption == kDropout) {
        const uint32_t mask = words[pair];
        words[pair] = weights | (~mask & 0x80008000u);
        weights &= mask;
      } else {
        words[pair] = kOption == kSoftCap ? r.factors[i][pair] : weights;
      }
    }
    store_shared_16(this->weight_address() + i * 512,
                    make_uint4(words[0], words[1], words[2], words[3]));
  }

  // From scores, which are under way before dV of the row block before, to weights. `due`: there is such a row
  // block. Returns whether this is the last one.
  __device__ __forceinline__ bool weigh_rows(State& r, const KeyTile& tile, bool due) {
    const RowBlock& block = control.block[query_stage(count)];
    const Option option = option_of(tile, block);
    warpgroup_wait<kValuesFirst ? 0 : 1>();
    hold(r.s);
    const int flags = block.flags;
    option.change(r.s);
    if constexpr (kOption == kSoftCap) option.template bend<0, kRows>(r.s);
    if (flags & (kMaskedForFirstGroup << rank() | kSegmentMaskedRows))
      mask_scores<Traits>(r.s, p, tile, block, rank(), Traits::kCtaKeys * rank() + 16 * warp, lane);
    weigh_with(r, option);
    warpgroup_wait<0>();  // dV: its operand's registers are needed
    if (!kValuesFirst && due) release_dout(count - 1);
    pack_scores<Traits>(r.s, r.weights);
    wait(control.weights_empty, count & 1 ^ 1);
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) hand_over(r, option, i);
    this->release(control.weights_full);
    return __any_sync(0xffffffffu, flags & kLastRows);  // the compiler must know that lanes agree
  }
  // dQ of the row block before; then the block at hand is the one before.
  __device__ __forceinline__ void finish_row_block(State& r, bool due) {
    hold(r.dq);
    if (due) this->add_query_sum(r.dq);
    this->set_due(control.block[query_stage(count)]);
    this->release_in_both(control.query_empty[query_stage(count)]);
    ++count;
  }

  // A block of keys, from its first row block to the last.
  __device__ __forceinline__ void process(State& r, const KeyTile& tile) {
    if (tile.padded) {
      const int keys = tile.visible.kv_len - tile.first_key;
      this->template clear<Key>(shared, keys - Traits::kCtaKeys * rank());
      this->template clear<OtherKey>(shared + Traits::kOtherKeyOffset,
                                     keys - Traits::kCtaKeys * (rank() ^ 1));
    }
    issue_scores(r, tile, count);
    if (!kValuesFirst) warpgroup_commit();  // in the place of dV's
    bool due = false;                       // dQ of the row block before
#pragma unroll 1
    while (!weigh_rows(r, tile, due)) {
      if (kValuesFirst) issue_value_gradient(r, tile, due);
      this->issue_query_sum(r.dq, due);
      issue_scores(r, tile, count + 1);
      if (!kValuesFirst) issue_value_gradient(r, tile, due);
      warpgroup_wait<2>();
      if (kValuesFirst) {
        release_dout(count);
        warpgroup_wait<1>();
      }
      finish_row_block(r, due);
      due = true;
    }
    if (kValuesFirst) issue_value_gradient(r, tile, due);
    this->issue_query_sum(r.dq, due);
    if (!kValuesFirst) issue_value_gradient(r, tile, due);
    warpgroup_wait<1>();
    if (kValuesFirst) {
      release_dout(count);
      warpgroup_wait<0>();
    }
    finish_row_block(r, due);
    this->issue_query_sum(r.dq, true);
    warpgroup_wait<0>();
    hold(r.dq);
    hold(r.dv);
    if (!kValuesFirst) release_dout(count - 1);
    this->release(control.key_empty[0]);
    this->add_query_sum(r.dq);
  }

  __device__ __forceinline__ void run() {
    while (true) {
      wait(control.key_full[0], tiles & 1);
      const KeyTile& tile = control.tile[tiles % 3];
      if (__any_sync(0xffffffffu, tile.kind == KeyTileKind::kNone)) break;
      State r;
      if (__any_sync(0xffffffffu, tile.kind == KeyTileKind::kSeen))
        process(r, tile);
      else
        this->release(control.key_empty[0]);
      this->template store<Traits::kDimV>(p.dv, p.dim_v, r.dv, gradient_scale<Traits>(p, 1.0f),
                                          tile);
      ++tiles;
    }
    this->end_turns();
  }
};

}  // namespace jax_baracuda
