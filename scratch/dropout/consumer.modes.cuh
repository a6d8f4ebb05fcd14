// A consumer warpgroup: 64 query rows against the blocks of keys that the producer loads, tile after tile without a
// break. While the tensor cores work on Q.K^T of its next block and P.V of the last, another warpgroup is at its softmax.
#pragma once

#include "attention/hopper/consumer_output.cuh"
#include "device/tma.cuh"

namespace jax_baracuda {

template <class Traits>
struct Consumer : ConsumerOutput<Traits> {
  using Stage = ConsumerOutput<Traits>;
  using Stage::add_bias_block, Stage::bias, Stage::finish, Stage::pack, Stage::score, Stage::store;
  using Stage::bias_place, Stage::control, Stage::group, Stage::key_place, Stage::keys,
      Stage::queries, Stage::query_place;
  using Stage::ConsumerOutput, Stage::kDimV, Stage::kN;
  using Stage::tile_slot, Stage::value_place, Stage::values;
  using typename Stage::Key, typename Stage::Query, typename Stage::Value;
  using typename Stage::T, typename Stage::Weights;
  static constexpr int kScores = kN / 2, kOut = kDimV / 2;  // of a thread
  // All blocks of all tiles are one sequence: there are two buffers of queries, and the next tile's are there in time.
  static constexpr bool kJoined = Traits::kQueryStages > 1;
  static constexpr bool kLooksAhead = Traits::kOverlap && !kJoined && !Traits::kPaged;
  using FlatScores = float[kScores];
  using FlatOutput = float[kOut];

  static __device__ __forceinline__ void wait(uint64_t& barrier, int parity) {
    mbarrier_wait(shared_address(&barrier), parity);
  }
  // One arrival a warp.
  __device__ __forceinline__ void release(uint64_t& barrier) const {
    mbarrier_arrive_warp(shared_address(&barrier));
  }

  // The warpgroups issue their products in turns.
  __device__ __forceinline__ void take_turn() const {
    if constexpr (Traits::kPingpong) named_barrier_sync(group + 1, 256);
  }
  __device__ __forceinline__ void give_turn() const {
    if constexpr (Traits::kPingpong) {
      named_barrier_arrive(group + 1 == Traits::kGroups ? 1 : group + 2, 256);
    }
  }

  // A bias that all rows share, as a product of ones and the three numbers that each of it is the sum of.
  __device__ __forceinline__ void issue_row_bias(FlatScores& s) const {
    using Row = typename Traits::BiasRow;
    using Ones = typename Traits::Ones;
    constexpr int kOnes = Traits::kOnesOffset - Traits::kBiasOffset;
    const uint64_t row = Row::descriptor(bias);
    WarpgroupMma<__nv_bfloat16, kN>::shared(s, Ones::descriptor(bias + kOnes),
                                            advance(row, key_place.stage * Row::kBytes), 1);
  }
  __device__ __forceinline__ void issue_scores(FlatScores& s) const {
    uint64_t q = advance(queries, query_place.stage * Query::kBytes);
    // With three warpgroups there are no registers to keep the sums in.
    if constexpr (Traits::kGroups == 3 && !Traits::kModifies) asm volatile("" : "+l"(q));
    const uint64_t k = advance(keys, key_place.stage * Key::kBytes);
#pragma unroll
    for (int d = 0; d < Traits::kDim; d += 16)
      WarpgroupMma<T, kN>::shared(s, advance(q, Query::column_offset(d)),
                                  advance(k, Key::column_offset(d)), d > 0);
    if constexpr (Traits::kRowBiased) issue_row_bias(s);
    warpgroup_commit();
  }
  // fresh: there is no output yet.
  __device__ __forceinline__ void issue_output(FlatOutput& out, const Weights& weights,
                                               bool fresh = false) const {
    const uint64_t v = advance(values, value_place.stage * Value::kBytes);
#pragma unroll
    for (int n = 0; n < kN; n += 16)
      WarpgroupMma<T, kDimV>::registers(out, weights[n / 16], advance(v, Value::row_offset(n)),
                                        n > 0 || !fresh);
    warpgroup_commit();
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
    named_barrier_sync(5 + group, 128);
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
    KeyBlock block, next;  // next: see look_ahead()
    // Nothing is in `out`: two CTAs an SM have no clocks to spare for clearing it.
    bool fresh = true;

    __device__ __forceinline__ FlatScores& scores() { return reinterpret_cast<FlatScores&>(s); }
    __device__ __forceinline__ FlatOutput& output() { return reinterpret_cast<FlatOutput&>(out); }
    __device__ __forceinline__ void clear_output() {
      fresh = true;
      if constexpr (!Traits::kTwoCtas) {
#pragma unroll
        for (int i = 0; i < kOut; ++i) output()[i] = 0.0f;
      }
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
  // Of a later block of a tile, which is there in any case, only the keys are waited for: to read its record takes a hundred
  // clocks, in which the product can run.
  __device__ __forceinline__ void wait_keys() const {
    wait(control.key_full[key_place.stage], key_place.parity);
  }
  __device__ __forceinline__ void read_block(State& r) const {
    r.block = control.block[key_place.stage];
  }
  // The record of the tile's next block is read as soon as nothing but the conversion of the weights is left to do: to learn
  // of it takes as long as that.
  __device__ __forceinline__ void look_ahead(State& r) const {
    if (!kLooksAhead || (r.block.flags & kLastBlock)) return;
    wait(control.key_full[key_place.stage], key_place.parity);
    r.next = control.block[key_place.stage];
  }
  __device__ __forceinline__ void take_next(State& r) const {
    if constexpr (kLooksAhead)
      r.block = r.next;
    else
      wait_keys();
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

  // The bias of a block whose keys are still held lies in the buffer of the same place.
  __device__ __forceinline__ void add_bias(State& r) {
    if constexpr (Traits::kFloatBiased) {
      add_float_bias(r);
    } else if constexpr (Traits::kBiased) {
      wait(control.bias_full[key_place.stage], key_place.parity);
      add_bias_block(r.s, bias + key_place.stage * Traits::Bias::kBytes);
      release(control.bias_empty[key_place.stage]);
    }
  }

  // A panel is loaded anew as soon as it is given back, and that must not overtake loads from it that are under way, of which `last`
  // needs the last. This sleeps if it is one certain number.
  static __device__ __forceinline__ void loads_before_release(float last) {
    asm volatile(
        "{\n .reg .pred p;\n setp.eq.f32 p, %0, 0f12345678;\n @p nanosleep.u32 20;\n}\n" ::"f"(last)
        : "memory");
  }
  __device__ __forceinline__ void add_float_bias(State& r) {
    using Bias = typename Traits::Bias;
    const auto [lane, warp_row] = this->place();
    const FloatBias<Bias> floats(bias, warp_row, lane);
#pragma unroll
    for (int panel = 0; panel < Bias::kPanels; ++panel) {
      wait(control.bias_full[panel], bias_place.parity);
      floats.template add<kN>(r.s, panel, this->factor());
      loads_before_release(r.s[0][4 * panel + 3][3]);
      release(control.bias_empty[panel]);
    }
    bias_place.next();
  }

  // The first block of a tile that this warpgroup multiplies in full, with nothing to overlap with.
  __device__ __forceinline__ void begin(State& r) {
    float rescale[2];
    const bool turn = Traits::kSkips && is_later_block(r);
    wait(control.query_full[query_place.stage], query_place.parity);
    if (turn) take_turn();
    warpgroup_arrive();
    issue_scores(r.scores());
    this->draw_early(r.block);
    warpgroup_wait<0>();
    hold(r.scores());
    if (turn) give_turn();
    add_bias(r);
    release_keys(r.block);
    score(r.s, r.block, r.softmax, rescale);  // the first: there is no output to rescale
    look_ahead(r);
    pack(r.s, r.weights);
  }

  // Of the blocks of a tile, every warpgroup takes a turn for each but the first, whatever it does with it.
  __device__ __forceinline__ bool is_later_block(const State& r) const {
    return !(r.block.flags & kFirstBlock);
  }
  __device__ __forceinline__ bool is_hidden(const KeyBlock& block) const {
    return __any_sync(0xffffffffu, block.flags & kHidden << group);
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

  // Passes over a tile that this warpgroup has no rows of.
  __device__ __forceinline__ void pass_tile(State& r) {
    while (true) {
      pass_over(r);
      if (r.block.flags & kLastBlock) break;
      next_block(r);
    }
    next_tile();
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
    if constexpr (!kLooksAhead && !kJoined) read_block(r);
    this->draw_early(r.block);
    if constexpr (kNewTile) {
      finish(ending_slot, r.softmax, factor);
      r.softmax = OnlineSoftmax<1>();
    }
    warpgroup_wait<1>();
    hold(r.scores());
    add_bias(r);
    release_keys(r.block);
    if constexpr (!Traits::kOverlap) end_output(r);
    const bool moved = score(r.s, r.block, r.softmax, rescale);
    look_ahead(r);
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
    issue_output(r.output(), r.weights, Traits::kTwoCtas && r.fresh);
    r.fresh = false;
    end_output(r);
  }
  __device__ __forceinline__ void conclude(State& r) {
    float factor[2];
    finish(tile_slot, r.softmax, factor);
    store(tile_slot, r.out, factor);
  }
  // The same for the last block of a tile, whose factors and LSE are found while it is multiplied.
  __device__ __forceinline__ void end_tile(State& r) {
    if constexpr (Traits::kPaged) {  // nothing was gained there
      end(r);
      conclude(r);
    } else {
      float factor[2];
      wait_values();
      warpgroup_arrive();
      issue_output(r.output(), r.weights);
      finish(tile_slot, r.softmax, factor);
      end_output(r);
      store(tile_slot, r.out, factor);
    }
  }
  __device__ __forceinline__ void start_anew(State& r) {
    r.softmax = OnlineSoftmax<1>();
    r.clear_output();
    next_tile();
  }

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
    end_tile(r);
  }

  // A tile from its first block that is not hidden.
  __device__ __forceinline__ void run_tile(State& r, uint32_t shared_values) {
    begin(r);
    while (true) {
      const KeyBlock before = r.block;
      const bool more = !(before.flags & kLastBlock);
      if (more) take_next(r);
      clean_values(before, shared_values);
      if (!more) break;
      step<false>(r);
    }
    end_tile(r);
  }
  // Tile by tile, each a sequence of blocks.
  __device__ __forceinline__ void run_tiles(State& r, uint32_t shared_values) {
    while (next_block(r)) {
      if (Traits::kIdles && is_hidden(r.block)) {
        pass_tile(r);
        continue;
      }
      bool seen = true;
      if constexpr (Traits::kSkips) seen = pass_hidden(r);
      if (seen)
        run_tile(r, shared_values);
      else
        conclude(r);
      start_anew(r);
    }
  }

  // One product after the other: the other CTA of the SM has the tensor cores meanwhile.
  __device__ __forceinline__ void run_plain_tile(State& r, uint32_t shared_values) {
    while (true) {
      float rescale[2];
      warpgroup_arrive();
      issue_scores(r.scores());
      read_block(r);
      this->draw_early(r.block);
      warpgroup_wait<0>();
      hold(r.scores());
      release_keys(r.block);
      if (score(r.s, r.block, r.softmax, rescale) && !r.fresh) r.rescale_output(rescale);
      pack(r.s, r.weights);
      clean_values(r.block, shared_values);
      end(r);
      if (r.block.flags & kLastBlock) break;
      wait_keys();
    }
  }
  __device__ __forceinline__ void run_plainly(State& r, uint32_t shared_values) {
    while (next_block(r)) {
      wait(control.query_full[query_place.stage], query_place.parity);
      if (pass_hidden(r)) run_plain_tile(r, shared_values);
      conclude(r);
      start_anew(r);
    }
  }

  __device__ __forceinline__ void run(uint32_t shared_values) {
    State r;
    r.clear_output();
    if (Traits::kPingpong && group + 1 == Traits::kGroups) give_turn();
    if constexpr (Traits::kTwoCtas)
      run_plainly(r, shared_values);
    else if constexpr (kJoined)
      run_joined(r, shared_values);
    else
      run_tiles(r, shared_values);
  }
};

}  // namespace jax_baracuda
