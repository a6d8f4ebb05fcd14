// The backward kernel (FlashAttention-2, T. Dao, 2023, arXiv:2307.08691): a CTA takes a block of
// keys of one key/value head, holds dK and dV in registers, and goes over the query rows of the
// group's heads that see them.
#pragma once

#include <type_traits>

#include "attention/backward/arrival.cuh"
#include "attention/backward/config.h"
#include "attention/backward/padded_tile.cuh"
#include "attention/backward/results.cuh"
#include "attention/backward/rows.cuh"
#include "attention/backward/score_gradient.cuh"
#include "attention/backward/walk.cuh"
#include "device/fragment.cuh"
#include "device/product.cuh"

namespace jax_baracuda {

template <class T_, const BackwardTile& kTile, bool kFeatures_>
struct BackwardTraits {
  using T = T_;
  static constexpr bool kFeatures = kFeatures_;  // soft cap, ALiBi, bias, dropout
  static constexpr bool kInRegisters = kTile.in_registers, kAhead = kTile.ahead;
  static constexpr int kDim = kTile.dim, kDimV = kTile.dim_v, kKeys = kTile.keys,
                       kRows = kTile.rows;
  static constexpr int kWarps = kTile.warps, kThreads = 32 * kWarps, kCtas = kTile.ctas;

  // Reads of single floats meet in no bank if rows are swizzled, ldmatrix either way.
  template <int kTileRows, int kTileCols>
  using SharedTile = std::conditional_t<sizeof(T) == 2, PaddedTile<T, kTileRows, kTileCols>,
                                        Tile<T, kTileRows, kTileCols>>;
  using Key = SharedTile<kKeys, kDim>;
  using Value = SharedTile<kKeys, kDimV>;
  using Query = SharedTile<kRows, kDim>;
  using DOut = SharedTile<kRows, kDimV>;
  using Scores = SharedTile<kKeys, kRows>;

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

  using Place = typename Walk<kKeys, kRows>::Place;

  // Shared memory: K, V, weights, gradients of the scores, then per stage Q, dO and the rows' LSE
  // and delta.
  static constexpr int kStageBytes = Query::kBytes + DOut::kBytes + kRows * 8;
  static constexpr int kScoresAt = Key::kBytes + Value::kBytes;
  static constexpr int kScoresBytes = (kInRegisters ? 1 : 2) * Scores::kBytes;
  static constexpr int kStagesAt = kScoresAt + (kAhead ? 2 : 1) * kScoresBytes;
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
  __device__ __forceinline__ typename Traits::Scores gradients(int buffer) const {
    return typename Traits::Scores(base + Traits::kScoresAt + buffer * Traits::kScoresBytes);
  }
  __device__ __forceinline__ typename Traits::Scores weights(int buffer) const {
    return typename Traits::Scores(gradients(buffer).base + Traits::Scores::kBytes);
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
  __device__ __forceinline__ uint32_t lse(int s) const {
    return stage(s) + Traits::Query::kBytes + Traits::DOut::kBytes;
  }
  __device__ __forceinline__ uint32_t delta(int s) const { return lse(s) + Traits::kRows * 4; }
};

// What a CTA knows of its block of keys, and the modifier of each query head in turn. In shared
// memory: registers are for the products.
template <class Traits>
struct KeyBlock {
  Sequence sequence;
  int kv_head;
  GroupRows<typename Traits::T> rows;
  Walk<Traits::kKeys, Traits::kRows> walk;
  Visibility::Rows whole[Traits::kScoreKeyWarps];  // rows that see all keys of a warp
  ScoreModifier modify;                            // kFeatures only

  // All threads of the CTA call it.
  __device__ __forceinline__ void begin(const BackwardParams& p, int index) {
    __syncthreads();  // the block before may still be read
    if (threadIdx.x == 0) walk = Walk<Traits::kKeys, Traits::kRows>(p, sequence, index);
    __syncthreads();
    const int first = index * Traits::kKeys + threadIdx.x * Traits::kWarpKeys;
    if (threadIdx.x < Traits::kScoreKeyWarps)
      whole[threadIdx.x] = walk.whole(first, first + Traits::kWarpKeys);
  }
};

template <class Traits>
__device__ __forceinline__ void load_key_block(const BackwardParams& p,
                                               const KeyBlock<Traits>& block,
                                               const BackwardShared<Traits>& shared) {
  constexpr bool kVector = !Traits::kFeatures;  // see has_features()
  const int first = block.walk.block * Traits::kKeys, rows = block.sequence.kv_len;
  copy_rows<Traits::kThreads, kVector>(shared.key(), block.rows.key, p.kv_heads, first, rows, p.dim,
                                       p.vector_q != 0);
  copy_rows<Traits::kThreads, kVector>(shared.value(), block.rows.value, p.kv_heads, first, rows,
                                       p.dim_v, p.vector_v != 0);
}

// Rows of Q and dO of a place, with their statistics. Rows that do not count are zeros.
template <class Traits>
__device__ __forceinline__ void load_rows(const BackwardParams& p, const KeyBlock<Traits>& block,
                                          const BackwardShared<Traits>& shared, int stage,
                                          typename Traits::Place at) {
  constexpr bool kVector = !Traits::kFeatures;
  const int rows = block.sequence.q_len;
  copy_rows<Traits::kThreads, kVector>(shared.query(stage),
                                       block.rows.query + wide_product(at.head, p.dim), p.heads,
                                       at.row, rows, p.dim, p.vector_q != 0);
  copy_rows<Traits::kThreads, kVector>(shared.dout(stage),
                                       block.rows.dout + wide_product(at.head, p.dim_v), p.heads,
                                       at.row, rows, p.dim_v, p.vector_v != 0);
  copy_stats<Traits::kThreads, Traits::kRows>(shared.lse(stage), block.rows,
                                              wide_product(at.head, p.q_rows), at.row, rows);
}

// Lets others know when the rows that this thread has asked for are there.
template <class Traits>
__device__ __forceinline__ void commit_rows(const BackwardParams& p, uint32_t arrival) {
  if (!Traits::kAhead) {
    copy_async_commit();
  } else if (!Traits::kFeatures || (p.vector_q && p.vector_v)) {
    arrive_with_copies(arrival);
  } else {
    copy_async_wait_all();
    arrive(arrival);
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
  const Visibility::Rows whole = block.whole[key / Traits::kWarpKeys];
  const bool masked = by_segment || i < whole.begin || i + Traits::kPassRows > whole.end;
  const auto find_visible = [&] {
    uint32_t bits = visible_bits<kKeyTiles, kRowTiles>(visible, i, j, lane);
    if (by_segment)
      bits &= same_segment_bits<kKeyTiles, kRowTiles>(visible, block.walk.segments, i, j, lane);
    return bits;
  };
  const auto multiply_scores = [&] {
    clear(s);
    multiply_add<T, Traits::kDim>(
        s, [&](int m, int k) { return M::load_a(keys, key + m, k, lane); },
        [&](int n, int k) { return M::load_b(queries, row + n, k, lane); });
  };
  const auto multiply_gradients = [&] {
    clear(d);
    multiply_add<T, Traits::kDimV>(
        d, [&](int m, int k) { return M::load_a(values, key + m, k, lane); },
        [&](int n, int k) { return M::load_b(douts, row + n, k, lane); });
  };
  const uint32_t lse = shared.lse(stage) + row * 4, delta = shared.delta(stage) + row * 4;
  if constexpr (Traits::kFeatures) {
    const uint32_t bits = masked ? find_visible() : ~0u;
    multiply_scores();
    multiply_gradients();
    featured_score_gradients<kKeyTiles, kRowTiles>(s, d, p, block.modify, bits, lse, delta, i, j,
                                                   lane);
  } else {
    // The weights are found while the tensor cores multiply.
    multiply_scores();
    if (masked) hide_scores<kKeyTiles, kRowTiles>(s, find_visible());
    scores_to_weights<kKeyTiles, kRowTiles>(s, p.scale * kLog2E, lse, lane);
    multiply_gradients();
    weights_to_gradients<kKeyTiles, kRowTiles>(s, d, delta, lane);
  }
}

// The block's share of dQ, added to the sum in global memory.
template <class Traits>
__device__ __forceinline__ void compute_query_gradient(
    const BackwardParams& p, const KeyBlock<Traits>& block, const BackwardShared<Traits>& shared,
    int buffer, typename Traits::Place at, int* turn_counter, int turn, int warp, int lane) {
  using T = typename Traits::T;
  using M = Mma<T>;
  const int row = warp % Traits::kQueryRowWarps * Traits::kQueryRows;
  const int column = warp / Traits::kQueryRowWarps * Traits::kQueryColumns;
  const auto gradients = shared.gradients(buffer);
  const auto keys = shared.key();
  Accumulator<Traits::kQueryRows / 16, Traits::kQueryColumns / 8> dq;
  clear(dq);
  multiply_add<T, Traits::kKeys>(
      dq, [&](int m, int k) { return M::load_a_transposed(gradients, row + m, k, lane); },
      [&](int n, int k) { return M::load_b_transposed(keys, column + n, k, lane); });
  if (p.deterministic && block.walk.begins_unit(at)) {
    if (threadIdx.x == 0) wait_for_turn(turn_counter, turn);
    __syncthreads();
  }
  const int stride = p.heads * p.dq_width, i = at.row + row + lane / 4;
  float* to = block.rows.dq_sum + wide_product(at.head, p.dq_width) + wide_product(i, stride) +
              (column + 4 * (lane % 4));
  const int rows = block.sequence.q_len;
  if (at.row + Traits::kRows <= rows && p.dq_width == Traits::kDim)
    add_to_query_sum<true>(to, stride, 0, 0, dq);
  else
    add_to_query_sum<false>(to, stride, rows - i, p.dq_width - column, dq);
  if (p.deterministic && block.walk.ends_unit(at)) {
    __syncthreads();
    if (threadIdx.x == 0) pass_turn(turn_counter);
  }
}

// A block of keys, from loads to dK and dV.
template <class Traits>
__device__ __forceinline__ void process_key_block(const BackwardParams& p, KeyBlock<Traits>& block,
                                                  const BackwardShared<Traits>& shared,
                                                  uint32_t arrivals, uint32_t& phases) {
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

  using Place = typename Traits::Place;
  Place at = block.walk.first();
  int stage = 0, buffer = 0;
  if (!block.walk.at_end(at)) {
    load_key_block<Traits>(p, block, shared);
    load_rows<Traits>(p, block, shared, 0, at);
    commit_rows<Traits>(p, arrivals);
  }
  int modified_head = -1;
#pragma unroll 1
  while (!block.walk.at_end(at)) {
    const Place next = block.walk.after(at);
    const bool more = !block.walk.at_end(next);
    const int head = block.kv_head * p.group + at.head;
    const auto load_next = [&](int to) {
      load_rows<Traits>(p, block, shared, to, next);
      commit_rows<Traits>(p, arrivals + 8 * to);
    };
    if (Traits::kFeatures && at.head != modified_head) {
      if (threadIdx.x == 0) block.modify = ScoreModifier(p, block.sequence, head);
      modified_head = at.head;
      if (Traits::kAhead) __syncthreads();
    }
    if (Traits::kAhead) {
      wait_for_arrival(arrivals + 8 * stage, phases >> stage & 1);
      phases ^= 1u << stage;
    } else {
      copy_async_wait<0>();
      __syncthreads();  // the rows are there, and all warps have done with those before
    }
    constexpr bool kLoadEarly = !Traits::kAhead || Traits::kInRegisters;
    if (kLoadEarly && more && p.stages == 2) load_next(stage ^ 1);

    const bool by_segment = block.walk.by_segment(at);
    if (Traits::kScoreKeyWarps * Traits::kScoreRowWarps == Traits::kWarps ||
        score_row < Traits::kRows) {
#pragma unroll 1
      for (int row = score_row; row < score_row + Traits::kWarpRows; row += Traits::kPassRows) {
        Accumulator<Traits::kKeyTiles, Traits::kRowTiles> s, d;
        compute_scores<Traits>(s, d, p, block, shared, stage, by_segment, score_key, row, at.row,
                               lane);
        store_block<T>(shared.gradients(buffer), score_key, row, d, lane);
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
          store_block<T>(shared.weights(buffer), score_key, row, s, lane);
        }
      }
    }
    // While others compute, the first warp looks up whose turn it is.
    int* counter = nullptr;
    int turn = 0;
    if (p.deterministic && warp == 0) {
      const int unit = at.row / block.walk.kUnit * block.walk.kUnit;
      counter = turn_counter(p, block.sequence, head, unit);
      if (block.walk.begins_unit(at)) turn = block.walk.turn(unit, lane);
    }
    __syncthreads();  // the gradients (and weights) are there
    if (!kLoadEarly && more && p.stages == 2) load_next(stage ^ 1);

    if constexpr (!Traits::kInRegisters) {
      const auto queries = shared.query(stage);
      const auto douts = shared.dout(stage);
      const auto weights = shared.weights(buffer);
      const auto gradients = shared.gradients(buffer);
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
    compute_query_gradient<Traits>(p, block, shared, buffer, at, counter, turn, warp, lane);
    if (p.stages == 2) stage ^= 1;
    if (Traits::kAhead) buffer ^= 1;
    at = next;
  }

  __syncthreads();  // all warps have done with K
#pragma unroll
  for (int m = 0; m < Traits::kGradKeys / 16; ++m)
#pragma unroll
    for (int n = 0; n < Traits::kGradColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dk[m][n][e] *= p.scale;
  store_block<T>(shared.key(), grad_key, grad_column, dk, lane);
  store_block<T>(shared.value(), grad_key, grad_column_v, dv, lane);
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
  __shared__ uint64_t arrival[2];  // of each stage's rows
  const BackwardShared<Traits> shared{
      static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory))};

  const auto arrivals = static_cast<uint32_t>(__cvta_generic_to_shared(arrival));
  uint32_t phases = 0;  // of arrival: a bit each

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
    block.rows = GroupRows<typename Traits::T>(p, block.sequence, block.kv_head);
    if (Traits::kAhead)
      for (int i = 0; i < 2; ++i) init_arrival(arrivals + 8 * i, Traits::kThreads);
  }
  __syncthreads();
  // A sequence longer than max_k has more blocks than slots: neighbours go to the same CTA.
  const int blocks = (block.sequence.k_rows + Traits::kKeys - 1) / Traits::kKeys;
  const int share = (blocks + p.key_slots - 1) / p.key_slots;
  const int end = min((slot + 1) * share, blocks);
  for (int i = slot * share; i < end; ++i) {
    block.begin(p, i);
    process_key_block<Traits>(p, block, shared, arrivals, phases);
  }
}

}  // namespace jax_baracuda
