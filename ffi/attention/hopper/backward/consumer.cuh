// A consumer warpgroup: 64 keys, whose dK and dV it holds in registers, against the blocks of query rows that the
// producer loads. Scores lie transposed, keys along the accumulators' rows, so that weights and their gradients are
// register operands of dV += P^T dO and dK += dS^T Q; for dQ = dS K gradients of both warpgroups meet in shared memory.
//
// What the tensor cores get, of row block i:
//   dP(i) | dV(i) | dQ(i - 1), dK(i), S(i + 1) | dP(i + 1) ...
// A warpgroup waits for S(i) with dP(i) under way, and writes dQ(i - 1) with dK(i) and S(i + 1) under way.
#pragma once

#include "attention/backward/walk.cuh"
#include "attention/hopper/backward/results.cuh"
#include "attention/hopper/backward/traits.cuh"
#include "device/bulk.cuh"
#include "device/math.cuh"
#include "device/tma.cuh"
#include "device/wgmma_shared.cuh"

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

  using Scores = float[kRows / 2];            // 64 keys x kRows: four registers for 8 rows
  using Operand = uint32_t[kRows / 16][4];    // the same in 16 bits
  using QuerySum = float[kQueryColumns / 2];  // 64 rows

  const BackwardParams& p;
  typename Traits::Control& control;
  const uint32_t shared;
  const int group, warp, lane;
  const float scale;  // of scores, to base 2

  RingPlace<Traits::kQueryStages> query_place;
  uint32_t count = 0;  // row blocks so far: the place of dO and of gradients
  uint32_t tiles = 0;  // blocks of keys so far

  __device__ __forceinline__ BackwardConsumer(const HopperBackwardParams& params,
                                              typename Traits::Control& control, uint32_t shared,
                                              int group)
      : p(params.problem),
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

  // One arrival a warp.
  __device__ __forceinline__ void release(uint64_t& barrier) const {
    if (lane == 0) mbarrier_arrive(shared_address(&barrier));
  }

  template <int kN, bool kTransposed>
  static __device__ __forceinline__ void multiply(float (&d)[kN / 2], uint64_t a, uint64_t b,
                                                  bool begins) {
    if (begins)
      WarpgroupMmaShared<T, kN, kTransposed>::begin(d, a, b);
    else
      WarpgroupMmaShared<T, kN, kTransposed>::add(d, a, b);
  }

  // S^T = K Q^T and dP^T = V dO^T.
  __device__ __forceinline__ void issue_scores(Scores& s) const {
    const uint64_t k = Key::descriptor(shared + Key::row_offset(64 * group));
    const uint64_t q = Query::descriptor(query_address());
#pragma unroll
    for (int d = 0; d < kDim; d += 16)
      multiply<kRows, false>(s, advance(k, Key::column_offset(d)),
                             advance(q, Query::column_offset(d)), d == 0);
  }
  __device__ __forceinline__ void issue_weight_gradients(Scores& dp) const {
    const uint64_t v =
        Value::descriptor(shared + Traits::kValueOffset + Value::row_offset(64 * group));
    const uint64_t o = DOut::descriptor(dout_address());
#pragma unroll
    for (int d = 0; d < kDimV; d += 16)
      multiply<kRows, false>(dp, advance(v, Value::column_offset(d)),
                             advance(o, DOut::column_offset(d)), d == 0);
  }
  // dV += P^T dO, dK += dS^T Q: rows of a tile in shared memory are the depth.
  template <class TileT>
  static __device__ __forceinline__ void issue_key_gradient(float (&d)[TileT::kDim / 2],
                                                            const Operand& weights, uint32_t rows,
                                                            int accumulate) {
    const uint64_t b = TileT::descriptor(rows);
#pragma unroll
    for (int row = 0; row < kRows; row += 16)
      WarpgroupMma<T, TileT::kDim>::registers(
          d, weights[row / 16], advance(b, TileT::row_offset(row)), row > 0 || accumulate);
  }
  // dQ = dS K
  __device__ __forceinline__ void issue_query_gradient(QuerySum& dq, int stage) const {
    const uint32_t first_row =
        Traits::kSplit == QuerySplit::kRows ? Gradient::row_offset(64 * group) : 0;
    const uint32_t first_column =
        Traits::kSplit == QuerySplit::kColumns ? Key::column_offset(kQueryColumns * group) : 0;
    const uint64_t ds = Gradient::descriptor(shared + Traits::kGradientOffset +
                                             stage * Gradient::kBytes + first_row);
    const uint64_t k = Key::descriptor(shared + first_column);
#pragma unroll
    for (int key = 0; key < kKeys; key += 16)
      multiply<kQueryColumns, true>(dq, advance(ds, Gradient::column_offset(key)),
                                    advance(k, Key::row_offset(key)), key == 0);
  }

  static __device__ __forceinline__ void pack(const Scores& s, Operand& to) {
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        to[n / 2][n % 2 * 2 + half] = pack_pair<T>(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]);
  }

  // -inf for what positions or segment ids hide.
  __device__ __forceinline__ void mask(Scores& s, const KeyTile& tile,
                                       const RowBlock& block) const {
    const int j0 = tile.first_key + 64 * group + 16 * warp + lane / 4;
    const int i0 = block.first_row + 2 * (lane % 4);
    if (block.flags & kMaskedForFirstGroup << group) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int j = j0 + 8 * half;
        const Visibility::Rows rows = tile.visible.rows_of_keys(j, j + 1);
        const auto count = static_cast<unsigned>(rows.end - rows.begin);
        const auto first = static_cast<unsigned>(i0 - rows.begin);
#pragma unroll
        for (int n = 0; n < kRows / 8; ++n)
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
      for (int n = 0; n < kRows / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int row_id = segments.q[min(i0 + 8 * n + e, last_row)];
#pragma unroll
          for (int half = 0; half < 2; ++half)
            if (row_id != id[half]) s[4 * n + 2 * half + e] = negative_infinity();
        }
    }
  }

  __device__ __forceinline__ uint32_t lse_address() const {
    return shared + Traits::kLseOffset + query_place.stage * (kRows * 4) + lane % 4 * 8;
  }
  __device__ __forceinline__ uint32_t delta_address() const {
    return shared + Traits::kDeltaOffset + dout_stage(count) * (kRows * 4) + lane % 4 * 8;
  }

  // Scores to weights, in place and rounded.
  __device__ __forceinline__ void weigh(Scores& s, Operand& rounded) const {
    const uint32_t at = lse_address();
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const float2 lse = load_shared_float2(at + n * 32);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float x = fmaf(s[4 * n + e], scale, e % 2 ? -lse.y : -lse.x);
        s[4 * n + e] = exp2_approx(x);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half)
        rounded[n / 2][n % 2 * 2 + half] =
            pack_pair<T>(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]);
    }
  }

  // dP to dS, in place.
  __device__ __forceinline__ void differentiate(const Scores& weights, const Operand& rounded,
                                                Scores& dp) const {
    const uint32_t at = delta_address();
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const float2 delta = load_shared_float2(at + n * 32);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float2 w = make_float2(weights[4 * n + 2 * half], weights[4 * n + 2 * half + 1]);
        if constexpr (Traits::kRoundedWeights) w = unpack(rounded[n / 2][n % 2 * 2 + half]);
        float& a = dp[4 * n + 2 * half];
        float& b = dp[4 * n + 2 * half + 1];
        a = w.x * (a - delta.x);
        b = w.y * (b - delta.y);
      }
    }
  }
  static __device__ __forceinline__ float2 unpack(uint32_t pair) { return unpack_pair(pair, T()); }
  static __device__ __forceinline__ float2 unpack_pair(uint32_t pair, __nv_bfloat16) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  }
  static __device__ __forceinline__ float2 unpack_pair(uint32_t pair, __half) {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  }

  // dS to shared memory, rows of queries.
  __device__ __forceinline__ void store_gradients(const Operand& ds) const {
    const int row = lane % 8 + lane / 16 * 8, piece = 2 * warp + lane / 8 % 2;
    const uint32_t at = shared + Traits::kGradientOffset +
                        gradient_stage(count) * Gradient::kBytes + group * Gradient::kPanelBytes +
                        Gradient::row_offset(row) + ((piece ^ lane % 8) * 16);
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i)
      store_matrices_transposed(at + Gradient::row_offset(16 * i), ds[i]);
    fence_async_shared();
    __syncwarp();
  }

  // In deterministic calls: when the last addition has ended, the next block of keys may have its turn. One lane.
  static __device__ __forceinline__ void pass_turn_on(QueryGradientDue& due) {
    if (!due.added) return;
    bulk_wait();
    fence_async_all();
    pass_turn(due.added);
    due.added = nullptr;
  }
  // Remembers the row block before the one at hand.
  __device__ __forceinline__ void set_due() const {
    const RowBlock& block = control.block[query_stage_before()];
    QueryGradientDue& due = control.due[4 * group + warp];
    if (lane == 0) {
      due.block = block.block;
      due.turn = block.turn;
    }
    __syncwarp();
  }

  // A warp's part of dQ to the sum in global memory.
  __device__ __forceinline__ void add_query_gradient(const QuerySum& dq) {
    QueryGradientDue& due = control.due[4 * group + warp];
    const int part = (4 * group + warp) % Traits::kQueryParts;
    float* to = p.dq_sum + static_cast<int64_t>(due.block) * (kRows * kDim) +
                part * (Traits::kWarpQueryBytes / 4);
    if (Traits::kAblate & 16) {
#pragma unroll
      for (int i = 0; i < kQueryColumns / 2; i += 4)
        asm volatile(
            "red.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(to + i * 32 + lane * 4),
            "f"(dq[i]), "f"(dq[i + 1]), "f"(dq[i + 2]), "f"(dq[i + 3])
            : "memory");
      return;
    }
    const uint32_t at = shared + Traits::kSumOffset + (4 * group + warp) * Traits::kWarpQueryBytes +
                        (Traits::kSumStages == 2 ? (count & 1) * 8 * Traits::kWarpQueryBytes : 0);
    if (Traits::kSumStages == 2)
      asm volatile("cp.async.bulk.wait_group.read 1;\n" ::: "memory");
    else if (lane == 0)
      bulk_wait_read();  // of the last one
    __syncwarp();
    if (!(Traits::kAblate & 32)) store_query_sum(at, dq, lane);
    if (p.deterministic && lane == 0) {
      pass_turn_on(due);
      due.added = p.turns + due.block * kAddingWarps + part;
      wait_for_turn(due.added, due.turn);
      fence_async_all();
    }
    if (Traits::kAblate & 8) return;
    if (!(Traits::kAblate & 64)) fence_async_shared();
    __syncwarp();
    if (lane == 0) {
      bulk_add(to, at, Traits::kWarpQueryBytes);
      bulk_commit();
    }
  }

  // Zeros to rows [first, ...) of a tile in shared memory: they may be NaN, and 0 times that, too. Every warpgroup does
  // that for itself.
  template <class TileT>
  __device__ __forceinline__ void clear_rows(uint32_t tile, int first) const {
    constexpr int kPieces = TileT::kColumns / 8;
    const int rows = TileT::kRows - first;
    for (int piece = threadIdx.x % 128; piece < rows * kPieces * TileT::kPanels; piece += 128) {
      const int row = first + piece / kPieces % rows, panel = piece / kPieces / rows;
      store_shared_16(
          tile + panel * TileT::kPanelBytes + TileT::row_offset(row) + piece % kPieces * 16,
          make_uint4(0, 0, 0, 0));
    }
    fence_async_shared();
    named_barrier_sync(1 + group, 128);
  }

  // Waits for the queries of the block at hand.
  __device__ __forceinline__ void wait_query(const KeyTile& tile) const {
    wait(control.query_full[query_place.stage], query_place.parity);
    const RowBlock& block = control.block[query_place.stage];
    if (block.flags & kPaddedRows)
      clear_rows<Query>(query_address(), max(tile.visible.q_len - block.first_row, 0));
  }
  __device__ __forceinline__ void wait_dout(const KeyTile& tile, const RowBlock& block) const {
    wait(control.dout_full[dout_stage(count)], count / Traits::kDOutStages & 1);
    if (block.flags & kPaddedRows)
      clear_rows<DOut>(dout_address(), max(tile.visible.q_len - block.first_row, 0));
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
    if (!Traits::kLate) {
      warpgroup_arrive();
      issue_weight_gradients(r.dp);
      warpgroup_commit();
      warpgroup_wait<Traits::kScoresFirst ? 2 : 1>();
    } else {
      warpgroup_wait<Traits::kScoresFirst ? 1 : 0>();
    }
    hold(r.s);
    // dK of the block before is there, too.
    if (!Traits::kScoresFirst && accumulate) release(control.query_empty[query_stage_before()]);
    const int flags = block.flags;
    if (flags & (kMaskedForFirstGroup << group | kSegmentMaskedRows)) mask(r.s, tile, block);
    weigh(r.s, r.weights);
    warpgroup_arrive();
    if (Traits::kLate) {
      issue_weight_gradients(r.dp);
      warpgroup_commit();
    }
    issue_key_gradient<DOut>(r.dv, r.weights, dout_address(), accumulate);
    warpgroup_commit();
    warpgroup_wait<1>();
    hold(r.dp);
    if (Traits::kScoresFirst && accumulate) release(control.query_empty[query_stage_before()]);
    differentiate(r.s, r.weights, r.dp);
    warpgroup_wait<0>();  // dV: its operand's registers are needed
    release(control.dout_empty[dout_stage(count)]);
    pack(r.dp, r.gradients);
    const int stage = gradient_stage(count);
    wait(control.gradient_empty[stage], gradient_parity(count) ^ 1);
    store_gradients(r.gradients);
    release(control.gradient_full[stage]);
    return __any_sync(0xffffffffu, flags & kLastRows);  // the compiler must know that lanes agree
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
    }
    warpgroup_commit();
  }
  __device__ __forceinline__ void issue_key_gradient(State& r, uint32_t query, bool accumulate) {
    warpgroup_arrive();
    issue_key_gradient<Query>(r.dk, r.gradients, query, accumulate);
    warpgroup_commit();
  }
  // After dQ of the row block before has been waited for.
  __device__ __forceinline__ void finish_query_gradient(State& r) {
    if (!has_query_gradient()) return;
    release(control.gradient_empty[gradient_stage(count - 1)]);
    add_query_gradient(r.dq);
  }

  // A block of keys, from its first row block to the last.
  __device__ __forceinline__ void process(State& r, const KeyTile& tile) {
    wait_query(tile);
    warpgroup_arrive();
    issue_scores(r.s);
    warpgroup_commit();
    if (Traits::kScoresFirst) warpgroup_commit();  // in the place of dK's
    wait(control.value_full, tiles & 1);
    if (tile.padded)
      clear_rows<Value>(shared + Traits::kValueOffset,
                        max(tile.visible.kv_len - tile.first_key, 0));
    bool accumulate = false;  // to dK and dV, and dQ of the row block before is due
#pragma unroll 1
    while (!differentiate_rows(r, tile, accumulate)) {
      issue_query_gradient(r, accumulate);
      const uint32_t query = query_address();
      if (!Traits::kScoresFirst) issue_key_gradient(r, query, accumulate);
      query_place.next();
      wait_query(tile);
      warpgroup_arrive();
      issue_scores(r.s);
      warpgroup_commit();
      if (Traits::kScoresFirst) issue_key_gradient(r, query, accumulate);
      warpgroup_wait<2>();
      hold(r.dq);
      if (accumulate) finish_query_gradient(r);
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
    if (accumulate) finish_query_gradient(r);
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
    finish_query_gradient(r);
    if (p.deterministic && lane == 0) pass_turn_on(control.due[4 * group + warp]);
  }

  __device__ __forceinline__ void store(State& r, const KeyTile& tile) const {
    const Sequence& s = tile.sequence;
    const int first = tile.first_key + 64 * group + 16 * warp;
    const int64_t row = (s.k_first + first) * p.kv_heads + tile.kv_head;
    store_rows_of_warp<T, kDimV>(static_cast<T*>(p.dv) + row * p.dim_v,
                                 static_cast<int64_t>(p.kv_heads) * p.dim_v, s.k_rows - first,
                                 s.kv_len - first, p.dim_v, r.dv, 1.0f, lane);
    store_rows_of_warp<T, kDim>(static_cast<T*>(p.dk) + row * p.dim,
                                static_cast<int64_t>(p.kv_heads) * p.dim, s.k_rows - first,
                                s.kv_len - first, p.dim, r.dk, p.scale, lane);
  }

  __device__ __forceinline__ void run() {
    State r;
    int slot = 0;
    if (lane == 0) control.due[4 * group + warp].added = nullptr;
    while (true) {
      wait(control.key_full, tiles & 1);
      const KeyTile& tile = control.tile[slot];
      if (!__any_sync(0xffffffffu, tile.valid)) break;
      if (tile.padded) clear_rows<Key>(shared, max(tile.visible.kv_len - tile.first_key, 0));
      process(r, tile);
      store(r, tile);
      ++tiles;
      slot = slot == 2 ? 0 : slot + 1;
    }
    if (lane == 0) bulk_wait();
  }
};

}  // namespace jax_baracuda
