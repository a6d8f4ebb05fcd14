// A consumer warpgroup: 64 keys, whose dK and dV it holds in registers, against the blocks of query rows that the
// producer loads. Scores lie transposed, keys along the accumulators' rows, so that weights and their gradients are
// register operands of dV += P^T dO and dK += dS^T Q; for dQ = dS K gradients of both warpgroups meet in shared memory.
//
// What the tensor cores get, of row block i:
//   dP(i) | dV(i) | dQ(i - 1), dK(i), S(i + 1) | dP(i + 1) ...
// A warpgroup waits for S(i) with dP(i) under way, and writes dQ(i - 1) with dK(i) and S(i + 1) under way.
#pragma once

#include "attention/hopper/backward/conversion.cuh"
#include "attention/hopper/backward/products.cuh"
#include "attention/hopper/backward/results.cuh"
#include "attention/hopper/backward/scores.cuh"
#include "attention/hopper/backward/traits.cuh"
#include "device/bulk.cuh"
#include "device/math.cuh"
#include "device/tma.cuh"

namespace jax_baracuda {

template <class Traits>
struct BackwardConsumer {
  using T = typename Traits::T;
  using Key = typename Traits::Key;
  using Value = typename Traits::Value;
  using Query = typename Traits::Query;
  using DOut = typename Traits::DOut;
  using Gradient = typename Traits::Gradient;
  static constexpr int kRows = Traits::kRows, kDim = Traits::kDim, kDimV = Traits::kDimV;
  static constexpr int kKeys = Traits::kKeys, kQueryColumns = Traits::kQueryColumns;

  using Scores = KeyScores<Traits>;
  using Operand = KeyOperand<Traits>;
  using QuerySum = float[kQueryColumns / 2];  // 64 rows

  const HopperBackwardParams& launch;
  const BackwardParams& p;
  typename Traits::Control& control;
  const uint32_t shared;
  const int group, warp, lane;
  const float scale;  // of scores, to base 2

  RingPlace<Traits::kQueryStages> query_place;
  uint32_t count = 0;  // row blocks so far: the place of dO and of gradients
  uint32_t tiles = 0;  // blocks of keys so far
  uint32_t told = 0;   // of which it has been said that their terms have been added

  __device__ __forceinline__ BackwardConsumer(const HopperBackwardParams& params,
                                              typename Traits::Control& control, uint32_t shared,
                                              int group)
      : launch(params),
        p(params.problem),
        control(control),
        shared(shared),
        group(group),
        warp(threadIdx.x % 128 / 32),
        lane(threadIdx.x % 32),
        scale(params.problem.scale * kLog2E) {}

  static __device__ __forceinline__ void wait(uint64_t& barrier, int parity) {
    mbarrier_wait(shared_address(&barrier), parity);
  }
  static __device__ __forceinline__ int dout_stage(uint32_t count) {
    return count % Traits::kDOutStages;
  }
  static __device__ __forceinline__ int gradient_stage(uint32_t count) {
    return count % Traits::kGradientStages;
  }
  static __device__ __forceinline__ int gradient_parity(uint32_t count) {
    return count / Traits::kGradientStages & 1;
  }
  __device__ __forceinline__ int query_stage_before() const {
    return query_place.stage == 0 ? Traits::kQueryStages - 1 : query_place.stage - 1;
  }
  __device__ __forceinline__ uint32_t query_address() const {
    return shared + Traits::kQueryOffset + query_place.stage * Query::kBytes;
  }
  __device__ __forceinline__ uint32_t dout_address() const {
    return shared + Traits::kDOutOffset + dout_stage(count) * DOut::kBytes;
  }

  // Statistics of the rows of a lane's scores.
  __device__ __forceinline__ uint32_t lse_address() const {
    return shared + Traits::kLseOffset + query_place.stage * (kRows * 4) + lane % 4 * 8;
  }
  __device__ __forceinline__ uint32_t delta_address() const {
    return shared + Traits::kDeltaOffset + dout_stage(count) * (kRows * 4) + lane % 4 * 8;
  }

  // One arrival a warp.
  __device__ __forceinline__ void release(uint64_t& barrier) const {
    if (lane == 0) mbarrier_arrive(shared_address(&barrier));
  }

  // S^T = K Q^T and dP^T = V dO^T.
  __device__ __forceinline__ void issue_scores(Scores& s) const {
    multiply_rows<T, Key, Query>(s, shared + Key::row_offset(64 * group), query_address());
  }
  __device__ __forceinline__ void issue_weight_gradients(Scores& dp) const {
    multiply_rows<T, Value, DOut>(dp, shared + Traits::kValueOffset + Value::row_offset(64 * group),
                                  dout_address());
  }
  // dQ = dS K
  __device__ __forceinline__ void issue_query_gradient(QuerySum& dq, int stage) const {
    const uint32_t first_row =
        Traits::kSplit == QuerySplit::kRows ? Gradient::row_offset(64 * group) : 0;
    const uint32_t first_column =
        Traits::kSplit == QuerySplit::kColumns ? Key::column_offset(kQueryColumns * group) : 0;
    multiply_columns<T, Gradient, Key, kQueryColumns, kKeys>(
        dq, shared + Traits::kGradientOffset + stage * Gradient::kBytes + first_row,
        shared + first_column, true);
  }

  // dS to shared memory, rows of queries.
  __device__ __forceinline__ void store_gradients(const Operand& ds) const {
    store_score_gradients<Traits>(shared + Traits::kGradientOffset +
                                      gradient_stage(count) * Gradient::kBytes +
                                      group * Gradient::kPanelBytes,
                                  ds, warp, lane);
    fence_async_shared();
    __syncwarp();
  }

  // Remembers the row block before the one at hand.
  __device__ __forceinline__ void set_due() const {
    if (lane == 0) control.due[4 * group + warp] = control.block[query_stage_before()];
    __syncwarp();
  }

  // A warp's part of dQ to the sum in global memory.
  __device__ __forceinline__ void add_query_gradient(const QuerySum& dq, const KeyTile& tile) {
    const int buffer = 4 * group + warp;
    const uint32_t at = shared + Traits::kSumOffset + buffer * Traits::kWarpQueryBytes;
    if (adds_in_order<Traits>(p)) return hand_query_gradient(dq);
    if (lane == 0) bulk_wait_read();  // of the last one
    __syncwarp();
    store_query_sum(at, dq, lane);
    fence_async_shared();
    __syncwarp();
    if (lane == 0) {
      const int64_t block = control.due[buffer].block;
      const int part = buffer % Traits::kQueryParts;
      bulk_add(tile.sums + block * (kRows * kDim) + part * (Traits::kWarpQueryBytes / 4), at,
               Traits::kWarpQueryBytes);
      bulk_commit();
    }
  }
  // The same by another thread, at its turn.
  __device__ __forceinline__ void hand_query_gradient(const QuerySum& dq) {
    constexpr bool kTurns = Traits::kSplit == QuerySplit::kTurns;
    const uint32_t number = count - 1;  // of the row block
    const int part = kTurns ? warp : 4 * group + warp;
    const uint32_t buffer = number % Traits::kSumBuffers;
    wait(control.sum_empty[buffer], number / Traits::kSumBuffers & 1 ^ 1);
    store_query_sum(
        shared + Traits::kSumOffset + buffer * Traits::kSumBytes + part * Traits::kWarpQueryBytes,
        dq, lane);
    fence_async_shared();
    QueryGradientSum& sum = control.sum[number % Traits::kAdders];
    if (part == 0 && lane == 0) {
      sum.block = control.due[4 * group].block;
      sum.turn = control.due[4 * group].turn;
    }
    __syncwarp();
    release(sum.full);
  }
  // No more of them, once the last ones have been taken. Where warpgroups take turns, each ends its own adder.
  __device__ __forceinline__ void end_query_gradients() const {
    constexpr bool kTurns = Traits::kSplit == QuerySplit::kTurns;
    for (uint32_t i = 1; i <= Traits::kSumBuffers && i <= count; ++i)
      wait(control.sum_empty[(count - i) % Traits::kSumBuffers],
           (count - i) / Traits::kSumBuffers & 1);
    for (int adder = 0; adder < Traits::kAdders; ++adder) {
      if (kTurns && adder == group) continue;
      if (warp == 0 && lane == 0 && (kTurns || group == 0)) control.sum[adder].block = -1;
      __syncwarp();
      release(control.sum[adder].full);
    }
  }
  // Says that the tile's terms of dQ have been added.
  __device__ __forceinline__ void tell_added(const KeyTile& tile) {
    AddedTile& added = control.added[group];
    wait(added.empty, told & 1 ^ 1);
    ++told;
    if (warp == 0 && lane == 0) added.row = tile.sequence.index * p.kv_heads + tile.kv_head;
    if (lane == 0) bulk_wait();
    __syncwarp();
    release(added.full);
  }
  // No more of them.
  __device__ __forceinline__ void end_tiles() {
    AddedTile& added = control.added[group];
    wait(added.empty, told & 1 ^ 1);
    if (warp == 0 && lane == 0) added.row = -1;
    __syncwarp();
    release(added.full);
  }

  // Every warpgroup clears for itself.
  template <class TileT>
  __device__ __forceinline__ void clear(uint32_t tile, int first) const {
    clear_rows<TileT>(tile, max(first, 0), 1 + group);
  }

  // Waits for the queries of the block at hand.
  __device__ __forceinline__ void wait_query(const KeyTile& tile) const {
    wait(control.query_full[query_place.stage], query_place.parity);
    const RowBlock& block = control.block[query_place.stage];
    if (block.flags & kPaddedRows)
      clear<Query>(query_address(), tile.visible.q_len - block.first_row);
  }
  __device__ __forceinline__ void wait_dout(const KeyTile& tile, const RowBlock& block) const {
    wait(control.dout_full[dout_stage(count)], count / Traits::kDOutStages & 1);
    if (block.flags & kPaddedRows)
      clear<DOut>(dout_address(), tile.visible.q_len - block.first_row);
  }

  struct State {
    Scores s, dp;
    Operand weights, gradients;
    QuerySum dq;
    float dk[kDim / 2], dv[kDimV / 2];
  };

  // From scores, which are under way, to weights and gradients of a row block. `accumulate`: not the first one. Returns
  // whether it is the last one.
  __device__ __forceinline__ bool differentiate_rows(State& r, const KeyTile& tile,
                                                     bool accumulate) {
    const RowBlock& block = control.block[query_place.stage];
    wait_dout(tile, block);
    const int flags = block.flags;
    if constexpr (Traits::kFeatures) {
      weigh_with_features(r, tile, block, accumulate);
    } else {
      weigh_rows(r, tile, block, accumulate);
    }
    warpgroup_wait<0>();  // dV: its operand's registers are needed
    release(control.dout_empty[dout_stage(count)]);
    if (!Traits::kFeatures) pack_scores<Traits>(r.dp, r.gradients);
    const int stage = gradient_stage(count);
    wait(control.gradient_empty[stage], gradient_parity(count) ^ 1);
    store_gradients(r.gradients);
    release(control.gradient_full[stage]);
    return __any_sync(0xffffffffu, flags & kLastRows);  // the compiler must know that lanes agree
  }

  // To dS, in dp, with dV under way.
  __device__ __forceinline__ void weigh_rows(State& r, const KeyTile& tile, const RowBlock& block,
                                             bool accumulate) {
    if (!Traits::kLate) {
      warpgroup_arrive();
      issue_weight_gradients(r.dp);
      warpgroup_commit();
      warpgroup_wait<1>();
    } else {
      warpgroup_wait<0>();
    }
    hold(r.s);
    // dK of the block before is there, too.
    if (accumulate) release(control.query_empty[query_stage_before()]);
    const int flags = block.flags;
    if (flags & (kMaskedForFirstGroup << group | kSegmentMaskedRows))
      mask_scores<Traits>(r.s, p, tile, block, group, 64 * group + 16 * warp, lane);
    weigh<Traits>(r.s, scale, lse_address());
    pack_scores<Traits>(r.s, r.weights);
    warpgroup_arrive();
    if (Traits::kLate) {
      issue_weight_gradients(r.dp);
      warpgroup_commit();
    }
    multiply_weights<T, DOut, kRows>(r.dv, r.weights, dout_address(), accumulate);
    warpgroup_commit();
    warpgroup_wait<1>();
    hold(r.dp);
    differentiate<Traits>(r.s, r.weights, r.dp, delta_address());
  }
  // The same through soft cap, ALiBi, bias and dropout, for which S and dP are there together.
  __device__ __forceinline__ void weigh_with_features(State& r, const KeyTile& tile,
                                                      const RowBlock& block, bool accumulate) {
    warpgroup_arrive();
    issue_weight_gradients(r.dp);
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
  __device__ __forceinline__ void issue_key_gradient(State& r, uint32_t query, bool accumulate) {
    warpgroup_arrive();
    multiply_weights<T, Query, kRows>(r.dk, r.gradients, query, accumulate);
    warpgroup_commit();
  }
  // After dQ of the row block before has been waited for.
  __device__ __forceinline__ void finish_query_gradient(State& r, const KeyTile& tile) {
    if (!has_query_gradient()) return;
    release(control.gradient_empty[gradient_stage(count - 1)]);
    add_query_gradient(r.dq, tile);
  }

  // A block of keys, from its first row block to the last.
  __device__ __forceinline__ void process(State& r, const KeyTile& tile) {
    wait_query(tile);
    warpgroup_arrive();
    issue_scores(r.s);
    warpgroup_commit();
    wait(control.value_full, tiles & 1);
    if (tile.padded)
      clear<Value>(shared + Traits::kValueOffset, tile.visible.kv_len - tile.first_key);
    bool accumulate = false;  // to dK and dV, and dQ of the row block before is due
#pragma unroll 1
    while (!differentiate_rows(r, tile, accumulate)) {
      issue_query_gradient(r, accumulate);
      const uint32_t query = query_address();
      issue_key_gradient(r, query, accumulate);
      query_place.next();
      wait_query(tile);
      warpgroup_arrive();
      issue_scores(r.s);
      warpgroup_commit();
      warpgroup_wait<2>();
      hold(r.dq);
      if (accumulate) finish_query_gradient(r, tile);
      set_due();
      accumulate = true;
      ++count;
    }
    release(control.value_empty);
    issue_query_gradient(r, accumulate);
    issue_key_gradient(r, query_address(), accumulate);
    query_place.next();
    warpgroup_wait<1>();
    hold(r.dq);
    if (accumulate) finish_query_gradient(r, tile);
    set_due();
    ++count;
    // Both warpgroups: where they take turns, one throws the result away.
    wait(control.gradient_full[gradient_stage(count - 1)], gradient_parity(count - 1));
    warpgroup_arrive();
    issue_query_gradient(r.dq, gradient_stage(count - 1));
    warpgroup_commit();
    warpgroup_wait<0>();
    hold(r.dq);
    hold(r.dk);
    hold(r.dv);
    release(control.query_empty[query_stage_before()]);
    release(control.key_empty);
    finish_query_gradient(r, tile);
  }

  // Zeros for keys that no row sees.
  __device__ __forceinline__ void store(State& r, const KeyTile& tile) const {
    const Sequence& s = tile.sequence;
    const int first = tile.first_key + 64 * group + 16 * warp;
    const int counted = tile.kind == KeyTileKind::kSeen ? s.kv_len - first : 0;
    const int64_t row = (s.k_first + first) * p.kv_heads + tile.kv_head;
    store_rows_of_warp<T, kDimV>(static_cast<T*>(p.dv) + row * p.dim_v,
                                 static_cast<int64_t>(p.kv_heads) * p.dim_v, s.k_rows - first,
                                 counted, p.dim_v, r.dv, 1.0f, lane);
    store_rows_of_warp<T, kDim>(static_cast<T*>(p.dk) + row * p.dim,
                                static_cast<int64_t>(p.kv_heads) * p.dim, s.k_rows - first, counted,
                                p.dim, r.dk, p.scale, lane);
  }

  __device__ __forceinline__ void run() {
    int slot = 0;
    while (true) {
      wait(control.key_full, tiles & 1);
      const KeyTile& tile = control.tile[slot];
      if (__any_sync(0xffffffffu, tile.kind == KeyTileKind::kNone)) break;
      State r;
      if (__any_sync(0xffffffffu, tile.kind == KeyTileKind::kSeen)) {
        if (tile.padded) clear<Key>(shared, tile.visible.kv_len - tile.first_key);
        process(r, tile);
      } else {
        release(control.key_empty);
        release(control.value_empty);
      }
      store(r, tile);
      if (Traits::kConverts && launch.done) tell_added(tile);
      ++tiles;
      slot = slot == 2 ? 0 : slot + 1;
    }
    if (adds_in_order<Traits>(p))
      end_query_gradients();
    else if (Traits::kConverts && launch.done)
      end_tiles();
    else if (lane == 0)
      bulk_wait();
    if (Traits::kConverts && launch.done) {
      int index = 4 * group + warp, lane_of_converter = lane;
      // Nothing of it before the tiles: there are no registers for it.
      asm volatile("" : "+r"(index), "+r"(lane_of_converter));
      QueryGradientConverter<Traits>(launch, control, shared, index, lane_of_converter).run();
    }
  }
};

}  // namespace jax_baracuda
