// A consumer warpgroup: 64 keys, whose dK and dV it holds in registers, against the blocks of query rows that the
// producer loads. Scores lie transposed, keys along the accumulators' rows, so that weights and their gradients are
// register operands of dV += P^T dO and dK += dS^T Q; for dQ = dS K gradients of both warpgroups meet in shared memory.
//
// What the tensor cores get, of row block i:
//   dP(i) | dV(i) | dK(i) | dQ(i - 1), S(i + 1) | dP(i + 1) ...
// A warpgroup computes P(i) with dP(i) and half of dV(i) under way, dS(i) with dV(i) and half of dK(i), and leaves dQ(i - 1)
// in shared memory with S(i + 1) under way. Where another warpgroup computes dQ (sum_group.cuh), it has registers for less:
//   half of dV(i), dP(i), half of dV(i) | dK(i), S(i + 1) | half of dV(i + 1) ...
#pragma once

#include "attention/hopper/backward/bias_sums.cuh"
#include "attention/hopper/backward/consumer_sums.cuh"
#include "attention/hopper/backward/conversion.cuh"
#include "attention/hopper/backward/option.cuh"
#include "attention/hopper/backward/parts.cuh"
#include "attention/hopper/backward/products.cuh"
#include "attention/hopper/backward/results.cuh"
#include "attention/hopper/backward/scores.cuh"

namespace jax_baracuda {

template <class Traits>
struct BackwardConsumer : BackwardConsumerSums<Traits> {
  using Base = BackwardConsumerSums<Traits>;
  using Base::BackwardConsumerSums, Base::buffer_address, Base::control;
  using Base::copy_block_before, Base::count, Base::delta_address, Base::dout_address;
  using Base::dout_stage, Base::end_additions, Base::gradient_parity, Base::gradient_stage;
  using Base::group, Base::issue_query_gradient, Base::issue_scores, Base::issue_weight_gradients;
  using Base::kDim, Base::kDimV, Base::kRows, Base::key_address, Base::key_stage, Base::lane;
  using Base::launch, Base::leave_query_gradient, Base::lse_address, Base::p;
  using Base::publish_gradients, Base::query_address, Base::query_place, Base::query_stage_before;
  using Base::release, Base::scale, Base::send_query_gradient, Base::shared;
  using Base::store_gradients, Base::tell_added, Base::tiles, Base::value_address, Base::wait;
  using Base::wait_buffer, Base::wait_dout, Base::wait_query, Base::warp;
  using typename Base::DOut, typename Base::Gradient, typename Base::Key, typename Base::Operand;
  using typename Base::Query, typename Base::QuerySum, typename Base::Scores, typename Base::T;
  using typename Base::Value;

  // Rows that are weighed at once: see weigh_rows().
  static constexpr int kHalf = kRows / 2, kLastPart = Traits::kInterleaves ? kHalf : 0;
  // Whether the second warpgroup begins a tile half a row block behind the first one, where both begin with the same block:
  // else they would compute at the same time, and issue products at the same time.
  static constexpr bool kShifts =
      Traits::kSplit == QuerySplit::kColumns && !Traits::kFeatures && !Traits::kSumGroup;
  // Whether dK and dV leave by way of the warps' buffers of dQ, while the last products are under way.
  static constexpr bool kStoresEarly =
      !Traits::kInOrder && !Traits::kFeatures && !Traits::kSumGroup;

  using Option = BlockOption<Traits>;
  // Whether the mask comes after what the option makes of the scores.
  static constexpr bool kMasksLate = Traits::kOption == kSoftCap || Traits::kOption == kBias;

  struct State {
    Scores s, dp;
    Operand weights, gradients;
    Operand factors;  // see kFactors
    HeadOption<Traits::kOption> of_head;
    int head;  // that it was found for, or -1
    BiasSums<Traits> of_bias;
    QuerySum dq;
    float dk[kDim / 2], dv[kDimV / 2];
    uint32_t values[4];  // see kHoldsValues
  };

  // From scores, which are under way, to weights and gradients of a row block, and dV; if it interleaves, dK is under way
  // then. `due`: it is not the first one, `accumulate`: nor the first one that counts. Returns whether it is the last one.
  __device__ __forceinline__ bool differentiate_rows(State& r, const KeyTile& tile, bool due,
                                                     bool accumulate) {
    const RowBlock& block = control.block[query_place.stage];
    wait_dout(tile, block);
    const int flags = block.flags;
    if constexpr (Traits::kFeatures) {
      weigh_with_features(r, tile, block, accumulate);
    } else {
      weigh_rows(r, tile, block, due, accumulate);
    }
    if constexpr (Traits::kInterleaves) {
      differentiate_part<0, kHalf>(r, accumulate);
      differentiate_part<kHalf, kRows>(r, accumulate);
      warpgroup_commit();
    } else if (!Traits::kFeatures) {
      score_gradients<0, kRows>(r);
    }
    const int stage = gradient_stage(count);
    wait(control.gradient_empty[stage], gradient_parity(count) ^ 1);
    store_gradients(r.gradients);
    warpgroup_wait<Traits::kInterleaves ? 1 : 0>();  // dV
    release(control.dout_empty[dout_stage(count)]);
    return __any_sync(0xffffffffu, flags & kLastRows);  // the compiler must know that lanes agree
  }

  // The gradient of a bias that all rows share, of a head that is done.
  __device__ __forceinline__ void end_bias_sums(State& r, const KeyTile& tile) const {
    r.of_bias.end(p, tile, r.head, tile.first_key + 64 * group + 16 * warp, lane);
  }

  // To P, with dV under way, and dP.
  __device__ __forceinline__ void weigh_rows(State& r, const KeyTile& tile, const RowBlock& block,
                                             bool due, bool accumulate) {
    const int key = tile.first_key + 64 * group + 16 * warp + lane / 4;
    if (HeadOption<Traits::kOption>::kLooksUp && __any_sync(0xffffffffu, block.head != r.head)) {
      if (r.head >= 0) end_bias_sums(r, tile);
      r.head = block.head;
      r.of_head.find(p, tile, r.head, key);
    }
    const Option option(p, tile, block, r.of_head, group, key, lane);
    if (!Traits::kLate) {
      warpgroup_arrive();
      issue_weight_gradients(r);
      warpgroup_commit();
      warpgroup_wait<1>();
    } else {
      warpgroup_wait<0>();
    }
    hold(r.s);
    // dK of the block before is there, too.
    if ((!Traits::kInterleaves || Traits::kSumGroup) && accumulate)
      release(control.query_empty[query_stage_before()]);
    const int flags = block.flags;
    option.change(r.s);
    if (!kMasksLate && flags & (kMaskedForFirstGroup << group | kSegmentMaskedRows))
      mask_scores<Traits>(r.s, p, tile, block, group, 64 * group + 16 * warp, lane);
    if (Traits::kInterleaves) weigh_part<0, kHalf>(r, option, tile, block, accumulate);
    if (Traits::kInterleaves && Traits::kLate) warpgroup_commit();
    if constexpr (Traits::kOption == kBias && !Traits::kInterleaves) {
      to_weights<0, kHalf>(r, option, tile, block);
      to_weights<kHalf, kRows>(r, option, tile, block);
    } else {
      to_weights<kLastPart, kRows>(r, option, tile, block);
    }
    if (Traits::kBeginsWithDelta) begin_with_statistics<Traits>(r.dp, delta_address());
    warpgroup_arrive();
    if (Traits::kLate) {
      issue_weight_gradients(r);
      warpgroup_commit();
    }
    multiply_weights<T, DOut, kRows, kLastPart, kRows>(r.dv, r.weights, dout_address(), accumulate);
    warpgroup_commit();
    if (kShifts && group == 0 && !due && !passes(flags, 1))
      named_barrier_arrive(3, Traits::kConsumers);
    if (!Traits::kSumGroup) send_query_gradient(tile);
    warpgroup_wait<1>();
    hold(r.dp);
  }
  // From scores to P of some of the rows.
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void to_weights(State& r, const Option& option, const KeyTile& tile,
                                             const RowBlock& block) {
    if constexpr (Traits::kOption == 0) {
      weigh<Traits, kBegin, kEnd>(r.s, scale, lse_address());
      pack_scores<Traits, kBegin, kEnd>(r.s, r.weights);
    } else {
      if constexpr (kMasksLate) {
        if constexpr (Traits::kOption == kSoftCap)
          option.template bend<kBegin, kEnd>(r.s);
        else
          add_bias<kBegin, kEnd>(r, tile, block);
        if (block.flags & (kMaskedForFirstGroup << group | kSegmentMaskedRows))
          mask_scores<Traits, kBegin, kEnd>(r.s, p, tile, block, group, 64 * group + 16 * warp,
                                            lane);
      }
      if constexpr (Traits::kOption == kDropout || Traits::kOption == kBias)
        weigh<Traits, kBegin, kEnd>(r.s, scale, lse_address());
#pragma unroll
      for (int i = kBegin / 16; i < kEnd / 16; ++i) to_weights_with(r, option, i);
    }
  }
  // The same of rows 16i .. 16i + 15, with the option of the call.
  __device__ __forceinline__ void to_weights_with(State& r, const Option& option, int i) {
    if constexpr (Traits::kOption == kSoftCap) {
      option.weigh(i, r.s, lse_address(), r.factors[i]);
      pack_scores<T>(i, r.s, r.weights[i]);
    } else if constexpr (Traits::kOption == kDropout) {
      pack_scores<T>(i, r.s, r.factors[i]);
      uint32_t masks[4];
      option.find_kept(i, masks);
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) r.weights[i][pair] = r.factors[i][pair] & masks[pair];
    } else if constexpr (Traits::kOption == kBias) {
      pack_scores<T>(i, r.s, r.weights[i]);
    } else {
      option.terms.template weigh<Traits>(i, r.s, scale, lse_address());
      pack_scores<T>(i, r.s, r.weights[i]);
    }
    if constexpr (Traits::kSharedFactors)
      store_shared_16(factor_address(i), make_uint4(r.factors[i][0], r.factors[i][1],
                                                    r.factors[i][2], r.factors[i][3]));
  }
  // See WarpBias.
  __device__ __forceinline__ WarpBias warp_bias() const {
    return {shared + Traits::kFactorOffset + (4 * group + warp) * Traits::kFactorBytes};
  }
  // Asks for the bias of 64 rows of a row block.
  __device__ __forceinline__ void load_bias(const KeyTile& tile, const RowBlock& block,
                                            int first) const {
    if constexpr (Traits::kOption == kBias)
      warp_bias().load(p, tile, block.head, block.first_row + first,
                       tile.first_key + 64 * group + 16 * warp, lane);
  }
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void add_bias(State& r, const KeyTile& tile,
                                           const RowBlock& block) const {
    const WarpBias bias = warp_bias();
    const float factor = reciprocal_approx(p.scale);
    if (kBegin % WarpBias::kRows == 0) bias.wait();
    const auto add = [&](auto type) {
#pragma unroll
      for (int i = kBegin / 16; i < kEnd / 16; ++i)
        bias.add<decltype(type)>(16 * i % WarpBias::kRows, r.s + 8 * i, factor, lane);
    };
    if (p.bias.type == BiasType::kBF16)
      add(__nv_bfloat16());
    else
      add(__half());
    if (kEnd % WarpBias::kRows == 0 && kEnd < kRows) {
      __syncwarp();
      load_bias(tile, block, kEnd);
    }
  }
  // A lane's own place for the factors of rows 16i .. 16i + 15.
  __device__ __forceinline__ uint32_t factor_address(int i) const {
    return shared + Traits::kFactorOffset + (4 * group + warp) * Traits::kFactorBytes + i * 512 +
           lane * 16;
  }
  // From dP to dS of some of the rows.
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void score_gradients(State& r) {
    if constexpr (!Traits::kFactors) {
      differentiate<Traits, kBegin, kEnd>(r.s, r.weights, r.dp, delta_address(), r.gradients);
      r.of_bias.template add<kBegin, kEnd>(r.gradients);
    } else {
#pragma unroll
      for (int i = kBegin / 16; i < kEnd / 16; ++i) {
        if constexpr (Traits::kSharedFactors) {
          const uint4 held = load_shared_16(factor_address(i));
          r.factors[i][0] = held.x, r.factors[i][1] = held.y;
          r.factors[i][2] = held.z, r.factors[i][3] = held.w;
        }
        score_gradients_with(r, i);
      }
    }
  }
  // The same of rows 16i .. 16i + 15, with factors.
  __device__ __forceinline__ void score_gradients_with(State& r, int i) {
    const uint32_t delta = delta_address();
    if constexpr (Traits::kMultipliesPairs) {
      if constexpr (Traits::kOption == kDropout)
        differentiate_dropped_pairs(i, r.weights[i], r.factors[i], r.dp, delta, r.gradients[i]);
      else
        differentiate_pairs<Traits>(i, r.factors[i], r.dp, delta, r.gradients[i]);
      return;
    }
    if constexpr (Traits::kOption == kDropout)
      differentiate_dropped<T>(i, r.weights[i], r.factors[i], r.dp, delta);
    else
      differentiate<Traits>(i, r.factors[i], r.dp, delta);
    pack_scores<T>(i, r.dp, r.gradients[i]);
  }
  // From scores to P of some of the rows, and dV with it.
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void weigh_part(State& r, const Option& option, const KeyTile& tile,
                                             const RowBlock& block, bool accumulate) {
    to_weights<kBegin, kEnd>(r, option, tile, block);
    warpgroup_arrive();
    multiply_weights<T, DOut, kRows, kBegin, kEnd>(r.dv, r.weights, dout_address(), accumulate);
  }
  // From dP to dS of some of the rows, and dK with it.
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void differentiate_part(State& r, bool accumulate) {
    score_gradients<kBegin, kEnd>(r);
    warpgroup_arrive();
    multiply_weights<T, Query, kRows, kBegin, kEnd>(r.dk, r.gradients, query_address(), accumulate);
  }
  // The same through soft cap, ALiBi, bias and dropout, for which S and dP are there together.
  __device__ __forceinline__ void weigh_with_features(State& r, const KeyTile& tile,
                                                      const RowBlock& block, bool accumulate) {
    warpgroup_arrive();
    issue_weight_gradients(r);
    warpgroup_commit();
    warpgroup_wait<0>();
    hold(r.s);
    hold(r.dp);
    if (accumulate) release(control.query_empty[query_stage_before()]);
    const uint32_t lse = shared + Traits::kLseOffset + query_place.stage * (kRows * 4);
    const uint32_t delta = shared + Traits::kDeltaOffset + dout_stage(count) * (kRows * 4);
    apply_features<Traits>(r.s, r.dp, p, tile, block, group, 64 * group + 16 * warp, lse, delta,
                           lane, r.weights, r.gradients);
    warpgroup_arrive();
    multiply_weights<T, DOut, kRows>(r.dv, r.weights, dout_address(), accumulate);
    warpgroup_commit();
    send_query_gradient(tile);
  }

  // Whether this warpgroup computes (its share of) dQ of the row block before.
  __device__ __forceinline__ bool has_query_gradient() const {
    return Traits::kSplit != QuerySplit::kTurns || __any_sync(0xffffffffu, (count & 1) == group);
  }
  // `due`: there is one.
  __device__ __forceinline__ void issue_query_gradient(State& r, bool due) {
    if (has_query_gradient()) {
      if (due) wait(control.gradient_full[gradient_stage(count - 1)], gradient_parity(count - 1));
      warpgroup_arrive();
      issue_query_gradient(r.dq, gradient_stage(count - 1));
      warpgroup_commit();
    }
  }
  // dK, if it does not interleave.
  __device__ __forceinline__ void issue_key_gradient(State& r, bool accumulate) {
    if (Traits::kInterleaves) return;
    warpgroup_arrive();
    multiply_weights<T, Query, kRows>(r.dk, r.gradients, query_address(), accumulate);
    warpgroup_commit();
  }
  // After dQ of the row block before has been waited for.
  __device__ __forceinline__ void finish_query_gradient(State& r) {
    if (!has_query_gradient()) return;
    release(control.gradient_empty[gradient_stage(count - 1)]);
    leave_query_gradient(r.dq);
  }

  // Whether a warpgroup passes over a block, the first one, of which its keys see nothing. The last one is never passed over.
  static __device__ __forceinline__ bool passes(int flags, int group) {
    return Traits::kPasses && (flags & kHiddenFromFirstGroup << group) && !(flags & kLastRows);
  }
  // Passes over it: its dS is zero.
  __device__ __forceinline__ void pass_rows() {
    wait(control.dout_full[dout_stage(count)], count / Traits::kDOutStages & 1);
    release(control.dout_empty[dout_stage(count)]);
    const int stage = gradient_stage(count);
    wait(control.gradient_empty[stage], gradient_parity(count) ^ 1);
    int thread = threadIdx.x % 128;
    asm volatile("" : "+r"(thread));  // no address of it is kept
    const uint32_t panel =
        shared + Traits::kGradientOffset + stage * Gradient::kBytes + group * Gradient::kPanelBytes;
#pragma unroll
    for (int at = 0; at < Gradient::kPanelBytes; at += 128 * 16)
      store_shared_16(panel + thread * 16 + at, make_uint4(0, 0, 0, 0));
    publish_gradients();
    query_place.next();
    release(control.query_empty[query_stage_before()]);
    ++count;
  }

  // The end of a block of keys where another warpgroup computes dQ.
  __device__ __forceinline__ void end_with_key_gradient(State& r, bool accumulate) {
    issue_key_gradient(r, accumulate);
    query_place.next();
    publish_gradients();
    hold(r.dv);
    warpgroup_wait<0>();
    hold(r.dk);
    release(control.query_empty[query_stage_before()]);
    release(control.key_empty[key_stage()]);
    ++count;
  }

  // A block of keys, from its first row block to the last.
  __device__ __forceinline__ void process(State& r, const KeyTile& tile) {
    r.head = -1;
    r.of_bias.begin();
    wait_query(tile);
    bool due = false;         // dQ of the row block before is
    bool accumulate = false;  // to dK and dV
    const int flags = control.block[query_place.stage].flags;
    if (__any_sync(0xffffffffu, passes(flags, group))) {
      pass_rows();
      wait_query(tile);
      due = true;
    } else if (kShifts && group == 1 && __any_sync(0xffffffffu, !passes(flags, 0))) {
      named_barrier_sync(3, Traits::kConsumers);
    }
    load_bias(tile, control.block[query_place.stage], 0);
    warpgroup_arrive();
    issue_scores(r.s);
    warpgroup_commit();
    wait(control.value_full, tiles & 1);
    if (tile.padded)
      this->template clear<Value>(value_address(0), tile.visible.kv_len - tile.first_key);
    if constexpr (Traits::kHoldsValues)
      hold_first_columns<Value>(r.values, value_address(64 * group + 16 * warp), lane);
#pragma unroll 1
    while (!differentiate_rows(r, tile, due, Traits::kPasses ? accumulate : due)) {
      if (!Traits::kSumGroup) issue_query_gradient(r, due);
      issue_key_gradient(r, Traits::kPasses ? accumulate : due);
      query_place.next();
      wait_query(tile);
      load_bias(tile, control.block[query_place.stage], 0);
      warpgroup_arrive();
      issue_scores(r.s);
      warpgroup_commit();
      publish_gradients();
      if constexpr (!Traits::kSumGroup) {
        warpgroup_wait<Traits::kInterleaves ? 1 : 2>();
        hold(r.dq);
        if (due) finish_query_gradient(r);
        copy_block_before();
        if (Traits::kInterleaves) release(control.query_empty[query_stage_before()]);
      }
      accumulate = due = true;
      ++count;
    }
    release(control.value_empty);
    end_bias_sums(r, tile);
    if constexpr (Traits::kSumGroup)
      return end_with_key_gradient(r, Traits::kPasses ? accumulate : due);
    issue_query_gradient(r, due);
    issue_key_gradient(r, Traits::kPasses ? accumulate : due);
    query_place.next();
    publish_gradients();
    hold(r.dv);
    if (kStoresEarly && !is_part(tile))
      store<kDimV>(p.dv, p.dim_v, r.dv, gradient_scale<Traits>(p, 1.0f), tile);
    warpgroup_wait<0>();
    hold(r.dq);
    hold(r.dk);
    if (due) {
      finish_query_gradient(r);
      send_query_gradient(tile);
    }
    copy_block_before();
    release(control.query_empty[query_stage_before()]);
    ++count;
    // Both warpgroups: where they take turns, one throws the result away.
    wait(control.gradient_full[gradient_stage(count - 1)], gradient_parity(count - 1));
    warpgroup_arrive();
    issue_query_gradient(r.dq, gradient_stage(count - 1));
    warpgroup_commit();
    if (kStoresEarly && !is_part(tile))
      store<kDim>(p.dk, p.dim, r.dk, gradient_scale<Traits>(p, p.scale), tile);
    warpgroup_wait<0>();
    hold(r.dq);
    if (!is_part(tile)) release(control.key_empty[key_stage()]);
    finish_query_gradient(r);
    send_query_gradient(tile);
  }

  // dK or dV of the warp's keys. Zeros for keys that no row sees.
  template <int kWidth>
  __device__ __forceinline__ void store(void* to, int dim, const float (&d)[kWidth / 2],
                                        float factor, const KeyTile& tile) const {
    const Sequence& s = tile.sequence;
    const int first = tile.first_key + 64 * group + 16 * warp;
    const int rows = s.k_rows - first;
    const int counted = tile.kind == KeyTileKind::kSeen ? s.kv_len - first : 0;
    const int64_t row = (s.k_first + first) * p.kv_heads + tile.kv_head;
    const int64_t stride = static_cast<int64_t>(p.kv_heads) * dim;
    T* at = static_cast<T*>(to) + row * dim;
    if constexpr (kStoresEarly) {
      wait_buffer();
      int own_lane = lane;
      asm volatile("" : "+r"(own_lane));  // no address of it is kept while row blocks are processed
      store_rows_through<T, kWidth>(buffer_address(), at, stride, rows, counted, dim, d, factor,
                                    own_lane);
    } else {
      store_rows_of_warp<T, kWidth>(at, stride, rows, counted, dim, d, factor, lane);
    }
  }
  __device__ __forceinline__ void store(State& r, const KeyTile& tile) const {
    store<kDimV>(p.dv, p.dim_v, r.dv, gradient_scale<Traits>(p, 1.0f), tile);
    store<kDim>(p.dk, p.dim, r.dk, gradient_scale<Traits>(p, p.scale), tile);
  }

  // Whether other CTAs have parts of the tile, too.
  static __device__ __forceinline__ bool is_part(const KeyTile& tile) {
    return Traits::kDivides && __any_sync(0xffffffffu, tile.part >= 0);
  }
  // The same of a divided tile, by whoever comes last.
  __device__ __forceinline__ void store_parts(const State& r, const KeyTile& tile) const {
    int own_lane = lane;
    asm volatile("" : "+r"(own_lane));  // nothing of it is kept while row blocks are processed
    const PartsOfWarp<kDim, kDimV> parts(launch, tile.part, 4 * group + warp, own_lane);
    if (!parts.leave(r.dk, r.dv)) return;
    const Sequence& s = tile.sequence;
    const int first = tile.first_key + 64 * group + 16 * warp;
    const int64_t row = (s.k_first + first) * p.kv_heads + tile.kv_head;
    parts.template store<T>(p, row, s.k_rows - first, gradient_scale<Traits>(p, p.scale),
                            gradient_scale<Traits>(p, 1.0f));
  }

  __device__ __forceinline__ void run() {
    if (elect_lane()) control.left[4 * group + warp] = -1;
    __syncwarp();
    while (true) {
      wait(control.key_full[key_stage()], tiles / Traits::kKeyStages & 1);
      const KeyTile& tile = control.tile[tiles % 3];
      if (__any_sync(0xffffffffu, tile.kind == KeyTileKind::kNone)) break;
      State r;
      if (__any_sync(0xffffffffu, tile.kind == KeyTileKind::kSeen)) {
        if (tile.padded)
          this->template clear<Key>(key_address(), tile.visible.kv_len - tile.first_key);
        process(r, tile);
      } else {
        release(control.key_empty[key_stage()]);
        release(control.value_empty);
        if (kStoresEarly) store(r, tile);
      }
      if (is_part(tile)) {
        if constexpr (Traits::kDivides) store_parts(r, tile);
      } else if (!kStoresEarly) {
        store(r, tile);
      }
      if (!Traits::kSumGroup && Traits::kConverts && launch.done) tell_added(tile);
      // Not before: what is said of the tile is looked at until now, and a part may be over before more than this is loaded.
      if (!Traits::kSumGroup && is_part(tile)) release(control.key_empty[key_stage()]);
      ++tiles;
    }
    end_additions();
    if (Traits::kConverts && launch.done && 4 * group + warp < Traits::kWarpBuffers) {
      int index = 4 * group + warp, lane_of_converter = lane;
      // Nothing of it before the tiles: there are no registers for it.
      asm volatile("" : "+r"(index), "+r"(lane_of_converter));
      QueryGradientConverter<Traits, Traits::kOwnConversions>(launch, control, shared, index,
                                                              lane_of_converter)
          .run();
    }
  }
};

}  // namespace jax_baracuda
