// The backward kernel (FlashAttention-2, T. Dao, 2023, arXiv:2307.08691): a CTA takes a block of
// keys of one key/value head, holds dK and dV in registers, and goes over the query rows of the
// group's heads that see them.
#pragma once

#include "attention/backward/config.h"
#include "device/product.cuh"
#include "attention/backward/results.cuh"
#include "attention/backward/score_gradient.cuh"
#include "attention/backward/walk.cuh"
#include "device/fragment.cuh"

namespace jax_baracuda {

template <class T_, const BackwardTile& kTile, bool kFeatures_>
struct BackwardTraits {
  using T = T_;
  static constexpr bool kFeatures = kFeatures_;  // soft cap, ALiBi, bias, dropout
  static constexpr bool kInRegisters = kTile.in_registers;
  static constexpr int kDim = kTile.dim, kDimV = kTile.dim_v, kKeys = kTile.keys,
                       kRows = kTile.rows;
  static constexpr int kWarps = kTile.warps, kThreads = 32 * kWarps, kCtas = kTile.ctas;

  using Key = Tile<T, kKeys, kDim>;
  using Value = Tile<T, kKeys, kDimV>;
  using Query = Tile<T, kRows, kDim>;
  using DOut = Tile<T, kRows, kDimV>;
  using Scores = Tile<T, kKeys, kRows>;

  // Scores of a warp: all its rows at once, or 32 after 32 where weights stay in registers.
  static constexpr int kScoreKeyWarps = kTile.score_keys, kScoreRowWarps = kTile.score_rows;
  static constexpr int kWarpKeys = kKeys / kScoreKeyWarps, kWarpRows = kRows / kScoreRowWarps;
  static constexpr int kPassRows = kInRegisters ? 32 : kWarpRows;
  static constexpr int kKeyTiles = kWarpKeys / 16, kRowTiles = kPassRows / 8;
  static_assert(kWarpKeys % 16 == 0 && kPassRows % 16 == 0 && kWarpRows % kPassRows == 0);
  static_assert(kScoreKeyWarps * kScoreRowWarps <= kWarps);
  static_assert(!kInRegisters || (kScoreKeyWarps == kWarps && kTile.grad_keys == kWarps));

  // dK and dV of a warp.
  static constexpr int kGradKeyWarps = kTile.grad_keys, kGradColumnWarps = kWarps / kGradKeyWarps;
  static constexpr int kGradKeys = kKeys / kGradKeyWarps;
  static constexpr int kGradColumns = kDim / kGradColumnWarps,
                       kGradColumnsV = kDimV / kGradColumnWarps;
  static_assert(kGradKeys % 16 == 0 && kGradColumns % 16 == 0 && kGradColumnsV % 16 == 0);
  using KeyGradient = Accumulator<kGradKeys / 16, kGradColumns / 8>;
  using ValueGradient = Accumulator<kGradKeys / 16, kGradColumnsV / 8>;

  // dQ of a warp.
  static constexpr int kQueryRowWarps = kTile.query_rows;
  static constexpr int kQueryRows = kRows / kQueryRowWarps;
  static constexpr int kQueryColumns = kDim / (kWarps / kQueryRowWarps);
  static_assert(kQueryRows % 16 == 0 && kQueryColumns % 16 == 0);

  // Shared memory: K, V, weights, gradients of the scores, then per stage Q, dO and (lse, delta) of
  // each row.
  static constexpr int kStageBytes = Query::kBytes + DOut::kBytes + kRows * 8;
  static constexpr int kScoresAt = Key::kBytes + Value::kBytes;
  static constexpr int kStagesAt = kScoresAt + (kInRegisters ? 1 : 2) * Scores::kBytes;
  static_assert(kStagesAt + 2 * kStageBytes == kTile.shared_bytes(sizeof(T), 2));
};

// The tiles in shared memory.
template <class Traits>
struct BackwardShared {
  uint32_t base;

  __device__ __forceinline__ typename Traits::Key key() const { return typename Traits::Key(base); }
  __device__ __forceinline__ typename Traits::Value value() const {
    return typename Traits::Value(base + Traits::Key::kBytes);
  }
  __device__ __forceinline__ typename Traits::Scores gradients() const {
    return typename Traits::Scores(base + Traits::kScoresAt);
  }
  __device__ __forceinline__ typename Traits::Scores weights() const {
    return typename Traits::Scores(base + Traits::kScoresAt + Traits::Scores::kBytes);
  }
  __device__ __forceinline__ uint32_t stage(int s) const {
    return base + Traits::kStagesAt + s * Traits::kStageBytes;
  }
  __device__ __forceinline__ typename Traits::Query query(int s) const {
    return typename Traits::Query(stage(s));
  }
  __device__ __forceinline__ typename Traits::DOut dout(int s) const {
    return typename Traits::DOut(stage(s) + Traits::Query::kBytes);
  }
  __device__ __forceinline__ uint32_t stats(int s) const {
    return stage(s) + Traits::Query::kBytes + Traits::DOut::kBytes;
  }
};

// What a CTA knows of its block of keys, and the modifier of each query head in turn. In shared
// memory: registers are for the products.
template <class Traits>
struct KeyBlock {
  Sequence sequence;
  int kv_head;
  Walk<Traits::kKeys, Traits::kRows> walk;
  ScoreModifier modify;  // kFeatures only
};

template <class Traits>
__device__ __forceinline__ void load_key_block(const BackwardParams& p,
                                               const KeyBlock<Traits>& block,
                                               const BackwardShared<Traits>& shared) {
  using T = typename Traits::T;
  const int64_t row = block.sequence.k_first * p.kv_heads + block.kv_head;
  const int first = block.walk.block * Traits::kKeys;
  const GlobalRows<T> keys = {static_cast<const T*>(p.key) + row * p.dim,
                              static_cast<int64_t>(p.kv_heads) * p.dim, block.sequence.kv_len,
                              p.dim, p.vector_q != 0};
  const GlobalRows<T> values = {static_cast<const T*>(p.value) + row * p.dim_v,
                                static_cast<int64_t>(p.kv_heads) * p.dim_v, block.sequence.kv_len,
                                p.dim_v, p.vector_v != 0};
  load_tile<Traits::kThreads>(shared.key(), keys, first, threadIdx.x);
  load_tile<Traits::kThreads>(shared.value(), values, first, threadIdx.x);
}

// Rows of Q and dO from `row` on, with their statistics. Rows that do not count are zeros.
template <class Traits>
__device__ __forceinline__ void load_rows(const BackwardParams& p, const KeyBlock<Traits>& block,
                                          const BackwardShared<Traits>& shared, int stage, int head,
                                          int first) {
  using T = typename Traits::T;
  const Sequence& s = block.sequence;
  const int64_t row = s.q_first * p.heads + head;
  const GlobalRows<T> queries = {static_cast<const T*>(p.query) + row * p.dim,
                                 static_cast<int64_t>(p.heads) * p.dim, s.q_len, p.dim,
                                 p.vector_q != 0};
  const GlobalRows<T> douts = {static_cast<const T*>(p.dout) + row * p.dim_v,
                               static_cast<int64_t>(p.heads) * p.dim_v, s.q_len, p.dim_v,
                               p.vector_v != 0};
  load_tile<Traits::kThreads>(shared.query(stage), queries, first, threadIdx.x);
  load_tile<Traits::kThreads>(shared.dout(stage), douts, first, threadIdx.x);
  const int64_t pack_row = s.q_first - static_cast<int64_t>(s.pack) * p.q_rows;
  const int64_t at = (static_cast<int64_t>(s.pack) * p.heads + head) * p.q_rows + pack_row;
  for (int i = threadIdx.x; i < Traits::kRows; i += Traits::kThreads) {
    const bool valid = first + i < s.q_len;
    const int64_t from = valid ? at + first + i : 0;
    copy_async_4(shared.stats(stage) + i * 8, p.lse2 + from, valid);
    copy_async_4(shared.stats(stage) + i * 8 + 4, p.delta + from, valid);
  }
}

// Scores of rows [row, row + kPassRows) of the block from i0 against the warp's keys, to weights
// and gradients.
template <class Traits>
__device__ __forceinline__ void compute_scores(ScoreBlock<Traits::kKeyTiles, Traits::kRowTiles>& s,
                                               ScoreBlock<Traits::kKeyTiles, Traits::kRowTiles>& d,
                                               const BackwardParams& p,
                                               const KeyBlock<Traits>& block,
                                               const BackwardShared<Traits>& shared, int stage,
                                               bool by_segment, int key, int row, int i0,
                                               int lane) {
  using T = typename Traits::T;
  using M = Mma<T>;
  constexpr int kKeyTiles = Traits::kKeyTiles, kRowTiles = Traits::kRowTiles;
  const auto keys = shared.key();
  const auto values = shared.value();
  const auto queries = shared.query(stage);
  const auto douts = shared.dout(stage);
  const Visibility& visible = block.walk.visible;
  const int i = i0 + row, j = block.walk.block * Traits::kKeys + key;
  uint32_t bits = ~0u;
  const bool masked =
      by_segment || !visible.sees_all(i, i + Traits::kPassRows, j, j + Traits::kWarpKeys);
  if (masked) bits = visible_bits<kKeyTiles, kRowTiles>(visible, i, j, lane);
  if (by_segment)
    bits &= same_segment_bits<kKeyTiles, kRowTiles>(visible, block.walk.segments, i, j, lane);
  clear(s);
  clear(d);
  multiply_add<T, Traits::kDim>(
      s, [&](int m, int k) { return M::load_a(keys, key + m, k, lane); },
      [&](int n, int k) { return M::load_b(queries, row + n, k, lane); });
  multiply_add<T, Traits::kDimV>(
      d, [&](int m, int k) { return M::load_a(values, key + m, k, lane); },
      [&](int n, int k) { return M::load_b(douts, row + n, k, lane); });
  const uint32_t stats = shared.stats(stage) + row * 8;
  if constexpr (Traits::kFeatures)
    featured_score_gradients<kKeyTiles, kRowTiles>(s, d, p, block.modify, bits, stats, i, j, lane);
  else if (masked)
    score_gradients<true, kKeyTiles, kRowTiles>(s, d, p.scale * kLog2E, bits, stats, lane);
  else
    score_gradients<false, kKeyTiles, kRowTiles>(s, d, p.scale * kLog2E, bits, stats, lane);
}

// The block's share of dQ, added to the sum in global memory.
template <class Traits>
__device__ __forceinline__ void compute_query_gradient(
    const BackwardParams& p, const Sequence& sequence, const BackwardShared<Traits>& shared,
    int head, int i0, int* turn_counter, int turn, bool begins, bool ends, int warp, int lane) {
  using T = typename Traits::T;
  using M = Mma<T>;
  const int row = warp % Traits::kQueryRowWarps * Traits::kQueryRows;
  const int column = warp / Traits::kQueryRowWarps * Traits::kQueryColumns;
  const auto gradients = shared.gradients();
  const auto keys = shared.key();
  Accumulator<Traits::kQueryRows / 16, Traits::kQueryColumns / 8> dq;
  clear(dq);
  multiply_add<T, Traits::kKeys>(
      dq, [&](int m, int k) { return M::load_a_transposed(gradients, row + m, k, lane); },
      [&](int n, int k) { return M::load_b_transposed(keys, column + n, k, lane); });
  if (p.deterministic && begins) {
    if (threadIdx.x == 0) wait_for_turn(turn_counter, turn);
    __syncthreads();
  }
  add_to_query_sum(p, sequence, head, i0 + row, column, dq, lane);
  if (p.deterministic && ends) {
    __syncthreads();
    if (threadIdx.x == 0) pass_turn(turn_counter);
  }
}

// A block of keys, from loads to dK and dV.
template <class Traits>
__device__ __forceinline__ void process_key_block(const BackwardParams& p, KeyBlock<Traits>& block,
                                                  const BackwardShared<Traits>& shared) {
  using T = typename Traits::T;
  using M = Mma<T>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int j0 = block.walk.block * Traits::kKeys;
  const int score_key = warp % Traits::kScoreKeyWarps * Traits::kWarpKeys;
  const int score_row = warp / Traits::kScoreKeyWarps * Traits::kWarpRows;
  const int grad_key = warp % Traits::kGradKeyWarps * Traits::kGradKeys;
  const int grad_column = warp / Traits::kGradKeyWarps * Traits::kGradColumns;
  const int grad_column_v = warp / Traits::kGradKeyWarps * Traits::kGradColumnsV;

  typename Traits::KeyGradient dk;
  typename Traits::ValueGradient dv;
  clear(dk);
  clear(dv);

  using Place = typename Walk<Traits::kKeys, Traits::kRows>::Place;
  Place at = block.walk.first();
  int stage = 0;
  if (!block.walk.at_end(at)) {
    load_key_block<Traits>(p, block, shared);
    load_rows<Traits>(p, block, shared, 0, block.kv_head * p.group + at.head, at.row);
    copy_async_commit();
  }
  int modified_head = -1;
#pragma unroll 1
  while (!block.walk.at_end(at)) {
    const Place next = block.walk.after(at);
    const bool more = !block.walk.at_end(next);
    const int head = block.kv_head * p.group + at.head;
    const auto load_next = [&](int to) {
      load_rows<Traits>(p, block, shared, to, block.kv_head * p.group + next.head, next.row);
      copy_async_commit();
    };
    if (Traits::kFeatures && at.head != modified_head) {
      if (threadIdx.x == 0) block.modify = ScoreModifier(p, block.sequence, head);
      modified_head = at.head;
    }
    copy_async_wait<0>();
    __syncthreads();  // the rows are there, and all warps have done with those before
    if (more && p.stages == 2) load_next(stage ^ 1);

    const bool by_segment = block.walk.overlap(at.row) == Overlap::kSome;
    if (Traits::kScoreKeyWarps * Traits::kScoreRowWarps == Traits::kWarps ||
        score_row < Traits::kRows) {
#pragma unroll 1
      for (int row = score_row; row < score_row + Traits::kWarpRows; row += Traits::kPassRows) {
        Accumulator<Traits::kKeyTiles, Traits::kRowTiles> s, d;
        compute_scores<Traits>(s, d, p, block, shared, stage, by_segment, score_key, row, at.row,
                               lane);
        store_tile<T>(shared.gradients(), score_key, row, d, lane);
        if constexpr (Traits::kInRegisters) {
          const auto queries = shared.query(stage);
          const auto douts = shared.dout(stage);
          multiply_add<T, Traits::kPassRows, false>(
              dv, [&](int m, int k) { return M::from_accumulator(s[m / 16], k); },
              [&](int n, int k) { return M::load_b_transposed(douts, n, row + k, lane); });
          multiply_add<T, Traits::kPassRows, false>(
              dk, [&](int m, int k) { return M::from_accumulator(d[m / 16], k); },
              [&](int n, int k) { return M::load_b_transposed(queries, n, row + k, lane); });
        } else {
          store_tile<T>(shared.weights(), score_key, row, s, lane);
        }
      }
    }
    // While others compute, the first warp looks up whose turn it is.
    const bool begins = block.walk.begins_unit(at), ends = block.walk.ends_unit(at);
    int* counter = nullptr;
    int turn = 0;
    if (p.deterministic && warp == 0) {
      const int unit = at.row / block.walk.kUnit * block.walk.kUnit;
      counter = turn_counter(p, block.sequence, head, unit);
      if (begins) turn = block.walk.turn(unit, lane);
    }
    __syncthreads();  // the gradients (and weights) are there

    if constexpr (!Traits::kInRegisters) {
      const auto queries = shared.query(stage);
      const auto douts = shared.dout(stage);
      const auto weights = shared.weights();
      const auto gradients = shared.gradients();
      multiply_add<T, Traits::kRows>(
          dv, [&](int m, int k) { return M::load_a(weights, grad_key + m, k, lane); },
          [&](int n, int k) { return M::load_b_transposed(douts, grad_column_v + n, k, lane); });
      multiply_add<T, Traits::kRows>(
          dk, [&](int m, int k) { return M::load_a(gradients, grad_key + m, k, lane); },
          [&](int n, int k) { return M::load_b_transposed(queries, grad_column + n, k, lane); });
    }
    if (more && p.stages == 1) {
      if (!Traits::kInRegisters) __syncthreads();  // all warps have done with the rows
      load_next(0);
    }
    compute_query_gradient<Traits>(p, block.sequence, shared, head, at.row, counter, turn, begins,
                                   ends, warp, lane);
    if (p.stages == 2) stage ^= 1;
    at = next;
  }

  __syncthreads();  // all warps have done with K
#pragma unroll
  for (int m = 0; m < Traits::kGradKeys / 16; ++m)
#pragma unroll
    for (int n = 0; n < Traits::kGradColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dk[m][n][e] *= p.scale;
  store_tile<T>(shared.key(), grad_key, grad_column, dk, lane);
  store_tile<T>(shared.value(), grad_key, grad_column_v, dv, lane);
  __syncthreads();
  const Sequence& s = block.sequence;
  const int64_t row = s.k_first * p.kv_heads + block.kv_head;
  store_rows<Traits::kThreads>(shared.key(), static_cast<T*>(p.dk) + row * p.dim,
                               static_cast<int64_t>(p.kv_heads) * p.dim, j0, s.k_rows, s.kv_len,
                               p.dim, p.vector_q != 0);
  store_rows<Traits::kThreads>(shared.value(), static_cast<T*>(p.dv) + row * p.dim_v,
                               static_cast<int64_t>(p.kv_heads) * p.dim_v, j0, s.k_rows, s.kv_len,
                               p.dim_v, p.vector_v != 0);
}

// CTAs: the blocks of keys of a head one after the other, the first, which most rows see under a
// causal mask, first. Where dQ is added in order, heads come before blocks, so that few CTAs of a
// head run at once, and a CTA's number is drawn when it begins: whom it waits for has begun before
// it.
template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kCtas)
    attention_backward_kernel(const __grid_constant__ BackwardParams p) {
  extern __shared__ __align__(128) unsigned char shared_memory[];
  __shared__ KeyBlock<Traits> block;
  __shared__ unsigned ticket;
  const BackwardShared<Traits> shared{
      static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory))};

  unsigned index = blockIdx.x;
  if (p.deterministic) {
    if (threadIdx.x == 0) ticket = atomicAdd(p.tickets, 1);
    __syncthreads();
    index = ticket;
  }
  const unsigned rows = gridDim.x / p.key_slots;  // (sequence, key/value head)
  const int slot = p.deterministic ? index / rows : index % p.key_slots;
  const unsigned row = p.deterministic ? index % rows : index / p.key_slots;
  if (threadIdx.x == 0) {
    block.sequence = find_sequence(p, row / p.kv_heads);
    block.kv_head = row % p.kv_heads;
  }
  __syncthreads();
  // A sequence longer than max_k has more blocks than slots: neighbours go to the same CTA.
  const int blocks = (block.sequence.k_rows + Traits::kKeys - 1) / Traits::kKeys;
  const int share = (blocks + p.key_slots - 1) / p.key_slots;
  const int end = min((slot + 1) * share, blocks);
  for (int i = slot * share; i < end; ++i) {
    __syncthreads();  // the block before may still be read
    if (threadIdx.x == 0) block.walk = Walk<Traits::kKeys, Traits::kRows>(p, block.sequence, i);
    __syncthreads();
    process_key_block<Traits>(p, block, shared);
  }
}

}  // namespace jax_baracuda
