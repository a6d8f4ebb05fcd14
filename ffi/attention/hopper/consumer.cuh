// A consumer warpgroup: 64 query rows against the blocks of keys that the producer loads, tile after tile without a
// break. While the tensor cores work on Q.K^T of its next block and P.V of the last, another warpgroup is at its softmax.
#pragma once

#include "attention/forward/softmax.cuh"
#include "attention/hopper/epilogue.cuh"
#include "attention/hopper/params.h"
#include "attention/hopper/traits.cuh"
#include "device/divide.cuh"
#include "device/tma.cuh"

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

template <class Traits>
struct Consumer {
  using T = typename Traits::T;
  using Query = typename Traits::Query;
  using Key = typename Traits::Key;
  using Value = typename Traits::Value;
  static constexpr int kN = Traits::kN, kDimV = Traits::kDimV;
  static constexpr int kScores = kN / 2, kOut = kDimV / 2;  // of a thread
  using FlatScores = float[kScores];
  using FlatOutput = float[kOut];
  using Weights = uint32_t[kN / 16][4];
  static constexpr float kTolerated = 8.0f;

  const HopperForwardParams& all;
  const ForwardParams& p;
  typename Traits::Control& control;
  const float scale;  // of scores, to base 2; modified ones are logits in base 2 already

  const uint64_t queries, keys, values;  // descriptors
  RingPlace<Traits::kStages> key_place, value_place;
  RingPlace<Traits::kQueryStages> query_place;
  int tile_slot = 0;

  __device__ __forceinline__ Consumer(const HopperForwardParams& params,
                                      typename Traits::Control& control, uint32_t shared, int group)
      : all(params),
        p(params.problem),
        control(control),
        scale(Traits::kFeatures ? 1.0f : params.problem.scale * kLog2E),
        queries(Query::descriptor(shared + Query::row_offset(64 * group))),
        keys(Key::descriptor(shared + Traits::kKeyOffset)),
        values(Value::descriptor(shared + Traits::kValueOffset)) {}

  // Where this thread is: read anew where it is seldom needed, so that it takes no register in between.
  struct Place {
    int lane, warp_row;  // warp_row: first row of the warp within the tile
    // The lane's two rows.
    __device__ __forceinline__ int row(int half) const {
      return warp_row + score_row(0, 2 * half, lane);
    }
  };
  __device__ __forceinline__ Place place() const {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(thread));
    return {thread % 32, (thread - 128) / 32 * 16};
  }

  static __device__ __forceinline__ void wait(uint64_t& barrier, int parity) {
    mbarrier_wait(shared_address(&barrier), parity);
  }
  // One arrival a warp.
  __device__ __forceinline__ void release(uint64_t& barrier) const {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(shared_address(&barrier));
  }

  // The warpgroups issue their products in turns.
  __device__ __forceinline__ void take_turn() const {
    if constexpr (Traits::kPingpong) named_barrier_sync(threadIdx.x / 128, 256);
  }
  __device__ __forceinline__ void give_turn() const {
    if constexpr (Traits::kPingpong) {
      const int group = threadIdx.x / 128;  // from 1: the first warpgroup loads
      named_barrier_arrive(group == Traits::kGroups ? 1 : group + 1, 256);
    }
  }

  __device__ __forceinline__ void issue_scores(FlatScores& s) const {
    const uint64_t q = advance(queries, query_place.stage * Query::kBytes);
    const uint64_t k = advance(keys, key_place.stage * Key::kBytes);
#pragma unroll
    for (int d = 0; d < Traits::kDim; d += 16)
      WarpgroupMma<T, kN>::shared(s, advance(q, Query::column_offset(d)),
                                  advance(k, Key::column_offset(d)), d > 0);
    warpgroup_commit();
  }
  __device__ __forceinline__ void issue_output(FlatOutput& out, const Weights& weights) const {
    const uint64_t v = advance(values, value_place.stage * Value::kBytes);
#pragma unroll
    for (int n = 0; n < kN; n += 16)
      WarpgroupMma<T, kDimV>::registers(out, weights[n / 16], advance(v, Value::row_offset(n)), 1);
    warpgroup_commit();
  }

  // The row of the sequence that one of this lane's two rows of the tile is. In a packed tile, rows of the same place in
  // the sequence follow each other, head after head.
  __device__ __forceinline__ int row_of(const QueryTile& tile, const Place& at, int half) const {
    if constexpr (Traits::kPacked)
      return tile.first_row + static_cast<int>(divide(at.row(half), all.few.packed));
    return tile.first_row + at.row(half);
  }

  __device__ __forceinline__ void mask(Scores<1, kN>& s, const KeyBlock& block) const {
    if (block.flags & (kEndMasked | kPositionMasked | kSegmentMasked)) {
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

  // Soft cap, ALiBi and bias; hidden scores are -inf already.
  __device__ __forceinline__ void modify(Scores<1, kN>& s, const KeyBlock& block) const {
    const auto& tile = control.tile[tile_slot];
    const auto [lane, warp_row] = place();
    modify_scores<1, kN>(s, p, tile.modify, tile.first_row + warp_row, block.first_key, lane);
  }
  __device__ __forceinline__ void drop(Scores<1, kN>& s, const KeyBlock& block) const {
    if (Traits::kPaged || !p.dropout_seed) return;
    const auto& tile = control.tile[tile_slot];
    const auto [lane, warp_row] = place();
    drop_weights<1, kN>(s, tile.modify, tile.first_row + warp_row, block.first_key, lane);
  }

  // Scores to weights. A maximum moves when a score is more than 2^kTolerated times larger: weights beyond 1 are as
  // exact, and the output is seldom rescaled. `rescale` is what the weights so far are to be multiplied with; returns
  // whether that is anything but 1 in some row of the warp.
  __device__ __forceinline__ bool weigh(Scores<1, kN>& s, OnlineSoftmax<1>& softmax,
                                        float (&rescale)[2]) const {
    bool moved = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top0 = s[0][0][2 * half], top1 = s[0][0][2 * half + 1];
#pragma unroll
      for (int n = 1; n < kN / 8; ++n) {
        top0 = fmaxf(top0, s[0][n][2 * half]);
        top1 = fmaxf(top1, s[0][n][2 * half + 1]);
      }
      const float before = softmax.maximum[0][half];
      float top = fmaxf(before, butterfly_max<1, 2>(fmaxf(top0, top1)));
      const float jump = (top - before) * scale;  // not a number as long as no key was seen
      const bool moves = jump > kTolerated;
      if (!moves) top = before;
      moved = moved || moves;
      const float shift = top == negative_infinity() ? 0.0f : top * scale;
      softmax.maximum[0][half] = top;
      // Exactly 1 for a row that did not move: another row of the warp, maybe another request's, may have.
      rescale[half] = exp2_approx(moves ? -jump : 0.0f);
      float sum0 = softmax.sum[0][half] * rescale[half], sum1 = 0.0f;
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
        float& a = s[0][n][2 * half];
        float& b = s[0][n][2 * half + 1];
        a = exp2_approx(a * scale - shift);
        b = exp2_approx(b * scale - shift);
        sum0 += a;
        sum1 += b;
      }
      softmax.sum[0][half] = sum0 + sum1;
    }
    return __any_sync(0xffffffffu, moved);
  }

  static __device__ __forceinline__ void pack(const Scores<1, kN>& s, Weights& weights) {
#pragma unroll
    for (int n = 0; n < kN / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        weights[n / 2][n % 2 * 2 + half] = pack_pair<T>(s[0][n][2 * half], s[0][n][2 * half + 1]);
  }

  // Values past the end of the sequence may be NaN, and 0 times that, too. Every warpgroup clears them for itself.
  __device__ __forceinline__ void clear_padding(int first_key, int kv_len,
                                                uint32_t shared_values) const {
    constexpr int kPieces = Value::kColumns / 8;
    const int first = max(kv_len - first_key, 0);
    const uint32_t at = shared_values + value_place.stage * Value::kBytes;
    for (int piece = threadIdx.x % 128; piece < (kN - first) * kPieces * Value::kPanels;
         piece += 128) {
      const int row = first + piece / kPieces % (kN - first),
                panel = piece / kPieces / (kN - first);
      const uint32_t to =
          at + panel * Value::kPanelBytes + Value::row_offset(row) + piece % kPieces * 16;
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};\n" ::"r"(to), "r"(0) : "memory");
    }
    fence_async_shared();
    named_barrier_sync(4 + threadIdx.x / 128, 128);
  }

  // Where in the output one of this lane's two rows is.
  __device__ __forceinline__ OutputRow output_row(const QueryTile& tile, const Place& at,
                                                  int half) const {
    const int row = row_of(tile, at, half);
    const bool there = row < tile.sequence.q_rows;
    if constexpr (Traits::kPacked) {
      const int in_tile = row - tile.first_row;
      const int head = at.row(half) - in_tile * static_cast<int>(all.few.packed.divisor);
      return {row, tile.head + head, there && in_tile < all.few.rows};
    }
    return {row, tile.head, there};
  }

  __device__ __forceinline__ void finish(int slot, OnlineSoftmax<1>& softmax,
                                         float (&factor)[2]) const {
    const auto& tile = control.tile[slot];
    const Sequence& sequence = tile.sequence;
    const Place at = place();
    const auto row_at = [&](int half) { return output_row(tile, at, half); };
    const float* sinks = p.sinks ? p.sinks + sequence.index * p.sinks_stride : nullptr;
    const auto lse_at = [&](const OutputRow& r) {
      const int64_t row = sequence.q_first - static_cast<int64_t>(sequence.pack) * p.q_rows + r.row;
      return lse_of(p, sequence.pack, r.head, row);
    };
    if constexpr (Traits::kFewTiles) {
      if (all.few.splits > 1) {  // sinks come in when the splits are added up
        const auto split_at = [&](const OutputRow& r) {
          return &split_lse(all, tile.split, sequence.q_first + r.row, r.head);
        };
        finish_rows(sequence, nullptr, softmax, scale, at.lane, row_at, split_at, factor);
        return;
      }
    }
    finish_rows(sequence, sinks, softmax, scale, at.lane, row_at, lse_at, factor);
    if constexpr (Traits::kFeatures) {
      factor[0] *= p.dropout_scale;
      factor[1] *= p.dropout_scale;
    }
  }
  __device__ __forceinline__ void store(int slot, const float (&out)[kDimV / 8][4],
                                        const float (&factor)[2]) const {
    const auto& tile = control.tile[slot];
    const Place at = place();
    const auto row_at = [&](int half) { return output_row(tile, at, half); };
    if constexpr (Traits::kFewTiles) {
      if (all.few.splits > 1) {
        const int64_t elements = int64_t{p.packs} * p.q_rows * p.heads * p.dim_v;
        store_split_rows<kDimV>(p, tile.sequence, all.few.out + tile.split * elements, row_at, out,
                                factor, at.lane);
        return;
      }
    }
    store_rows<T, kDimV>(p, tile.sequence, row_at, out, factor, at.lane);
  }

  // The assembler moves the wait for the output up over all of the softmax, which is then done while the tensor cores
  // wait for it, unless something that needs the softmax's results stands between them. This sleeps if a sum is
  // negative: never. (A trap would do as well, but ptxas then forgets what setmaxnreg gave.)
  static __device__ __forceinline__ void weights_before_wait(const OnlineSoftmax<1>& softmax) {
    asm volatile(
        "{\n .reg .pred p;\n setp.lt.f32 p, %0, 0f00000000;\n @p nanosleep.u32 20;\n}\n" ::"f"(
            softmax.sum[0][0] + softmax.sum[0][1])
        : "memory");
  }

  // What a warpgroup holds of the block at hand and of the tile.
  struct State {
    Scores<1, kN> s;
    Weights weights;
    float out[kDimV / 8][4];
    OnlineSoftmax<1> softmax;
    KeyBlock block;

    __device__ __forceinline__ FlatScores& scores() { return reinterpret_cast<FlatScores&>(s); }
    __device__ __forceinline__ FlatOutput& output() { return reinterpret_cast<FlatOutput&>(out); }
    __device__ __forceinline__ void clear_output() {
#pragma unroll
      for (int i = 0; i < kOut; ++i) output()[i] = 0.0f;
    }
    __device__ __forceinline__ void rescale_output(const float (&factor)[2]) {
#pragma unroll
      for (int c = 0; c < kDimV / 8; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) out[c][e] *= factor[e >> 1];
    }
  };

  // Waits for the next block of keys; false if there is none.
  __device__ __forceinline__ bool next_block(State& r) const {
    wait(control.key_full[key_place.stage], key_place.parity);
    r.block = control.block[key_place.stage];
    return !__any_sync(0xffffffffu, r.block.flags & kNoBlock);
  }
  __device__ __forceinline__ void wait_values() const {
    wait(control.value_full[value_place.stage], value_place.parity);
  }
  // Values that need cleaning are waited for early.
  __device__ __forceinline__ void clean_values(const KeyBlock& block,
                                               uint32_t shared_values) const {
    if (!(block.flags & kPaddedBlock)) return;
    wait_values();
    clear_padding(block.first_key, control.tile[tile_slot].sequence.kv_len, shared_values);
  }
  __device__ __forceinline__ void next_tile() {
    query_place.next();
    tile_slot = (tile_slot + 1) % Traits::Control::kTiles;
  }
  __device__ __forceinline__ void release_keys(const KeyBlock& block) {
    release(control.key_empty[key_place.stage]);
    if (block.flags & kLastBlock) release(control.query_empty[query_place.stage]);
    key_place.next();
  }

  // From products to weights, as weigh().
  __device__ __forceinline__ bool score(State& r, float (&rescale)[2]) const {
    mask(r.s, r.block);
    if constexpr (Traits::kFeatures) modify(r.s, r.block);
    const bool moved = weigh(r.s, r.softmax, rescale);
    if constexpr (Traits::kFeatures) drop(r.s, r.block);
    return moved;
  }

  // The first block of a tile that this warpgroup multiplies in full, with nothing to overlap with.
  __device__ __forceinline__ void begin(State& r) {
    float rescale[2];
    const bool turn = is_later_block(r);
    wait(control.query_full[query_place.stage], query_place.parity);
    if (turn) take_turn();
    warpgroup_arrive();
    issue_scores(r.scores());
    warpgroup_wait<0>();
    hold(r.scores());
    if (turn) give_turn();
    release_keys(r.block);
    score(r, rescale);  // the first: there is no output to rescale
    pack(r.s, r.weights);
  }

  // Of the blocks of a tile, every warpgroup takes a turn for each but the first, whatever it does with it.
  __device__ __forceinline__ bool is_later_block(const State& r) const {
    return Traits::kSkips && !(r.block.flags & kFirstBlock);
  }
  __device__ __forceinline__ bool is_hidden(const KeyBlock& block) const {
    return __any_sync(0xffffffffu, block.flags & kHidden << (threadIdx.x / 128 - 1));
  }

  // A block that this warpgroup sees nothing of. Its buffers are given back when they are full: an arrival before that
  // could count for the buffers' use before.
  __device__ __forceinline__ void pass_over(State& r) {
    wait(control.query_full[query_place.stage], query_place.parity);
    if (is_later_block(r)) {
      take_turn();
      give_turn();
    }
    release_keys(r.block);
    wait_values();
    release(control.value_empty[value_place.stage]);
    value_place.next();
  }

  // Passes over the first blocks of a tile that are hidden. Whether a block is left: it has then been waited for.
  __device__ __forceinline__ bool pass_hidden(State& r) {
    while (is_hidden(r.block)) {
      pass_over(r);
      if (r.block.flags & kLastBlock) return false;
      next_block(r);
    }
    return true;
  }

  // The scores of the next block, which next_block() has waited for, and the output of the one before; kNewTile: that was
  // the last block of another tile.
  template <bool kNewTile>
  __device__ __forceinline__ void step(State& r) {
    const int ending_slot = tile_slot;
    float rescale[2], factor[2];
    if constexpr (kNewTile) {
      next_tile();
      wait(control.query_full[query_place.stage], query_place.parity);
    }
    take_turn();
    warpgroup_arrive();
    issue_scores(r.scores());
    wait_values();
    warpgroup_arrive();
    issue_output(r.output(), r.weights);
    give_turn();
    if constexpr (kNewTile) {
      finish(ending_slot, r.softmax, factor);
      r.softmax = OnlineSoftmax<1>();
    }
    warpgroup_wait<1>();
    hold(r.scores());
    release_keys(r.block);
    if constexpr (!Traits::kOverlap) end_output(r);
    const bool moved = score(r, rescale);
    if constexpr (Traits::kOverlap) {
      weights_before_wait(r.softmax);
      end_output(r);
    }
    pack(r.s, r.weights);
    if constexpr (kNewTile) {
      store(ending_slot, r.out, factor);
      r.clear_output();
    } else if (moved) {
      r.rescale_output(rescale);
    }
  }

  __device__ __forceinline__ void end_output(State& r) {
    warpgroup_wait<0>();
    hold(r.output());
    release(control.value_empty[value_place.stage]);
    value_place.next();
  }

  // The last block's output, with nothing to overlap with.
  __device__ __forceinline__ void end(State& r) {
    wait_values();
    warpgroup_arrive();
    issue_output(r.output(), r.weights);
    end_output(r);
  }
  __device__ __forceinline__ void conclude(State& r) {
    float factor[2];
    finish(tile_slot, r.softmax, factor);
    store(tile_slot, r.out, factor);
  }
  __device__ __forceinline__ void begin_anew(State& r) {
    conclude(r);
    r.softmax = OnlineSoftmax<1>();
    r.clear_output();
    next_tile();
  }

  // All blocks of all tiles as one sequence: there are two buffers of queries, and the next tile's are there in time.
  __device__ __forceinline__ void run_joined(State& r, uint32_t shared_values) {
    if (!next_block(r)) return;
    begin(r);
    while (true) {
      const KeyBlock before = r.block;
      const bool more = next_block(r);
      clean_values(before, shared_values);
      if (!more) break;
      if (r.block.flags & kFirstBlock)
        step<true>(r);
      else
        step<false>(r);
    }
    end(r);
    conclude(r);
  }

  // Tile by tile, each a sequence of blocks.
  __device__ __forceinline__ void run_tiles(State& r, uint32_t shared_values) {
    while (next_block(r)) {
      bool more = true;
      if constexpr (Traits::kSkips) more = pass_hidden(r);
      if (more) {
        begin(r);
        while (true) {
          const KeyBlock before = r.block;
          more = !(before.flags & kLastBlock);
          if (more) next_block(r);
          clean_values(before, shared_values);
          if (!more) break;
          step<false>(r);
        }
        end(r);
      }
      begin_anew(r);
    }
  }

  // One product after the other: the other CTA of the SM has the tensor cores meanwhile.
  __device__ __forceinline__ void run_plainly(State& r, uint32_t shared_values) {
    while (next_block(r)) {
      float rescale[2];
      if (r.block.flags & kFirstBlock)
        wait(control.query_full[query_place.stage], query_place.parity);
      warpgroup_arrive();
      issue_scores(r.scores());
      warpgroup_wait<0>();
      hold(r.scores());
      release_keys(r.block);
      if (score(r, rescale)) r.rescale_output(rescale);
      pack(r.s, r.weights);
      clean_values(r.block, shared_values);
      end(r);
      if (r.block.flags & kLastBlock) begin_anew(r);
    }
  }

  __device__ __forceinline__ void run(uint32_t shared_values) {
    State r;
    r.clear_output();
    if (Traits::kPingpong && threadIdx.x / 128 == Traits::kGroups) give_turn();
    if constexpr (Traits::kTwoCtas)
      run_plainly(r, shared_values);
    else if constexpr (Traits::kQueryStages > 1)
      run_joined(r, shared_values);
    else
      run_tiles(r, shared_values);
  }
};

}  // namespace jax_baracuda
