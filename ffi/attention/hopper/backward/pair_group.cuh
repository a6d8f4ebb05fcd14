// What the two consumer warpgroups of a CTA of a pair have in common: buffers, and their parts of dQ = dS K.
//
// dQ of a CTA's columns sums over the keys of both CTAs. So each CTA copies its dS to the other one, and holds those
// columns of the other's keys. What both CTAs write is released to both.
#pragma once

#include "attention/backward/walk.cuh"
#include "attention/hopper/backward/option.cuh"
#include "attention/hopper/backward/pair_turns.cuh"
#include "attention/hopper/backward/products.cuh"
#include "attention/hopper/backward/results.cuh"
#include "attention/hopper/backward/scores.cuh"
#include "attention/hopper/backward/traits.cuh"
#include "device/bulk.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

// kPart: which of the two warpgroups.
template <class Traits, int kPart>
struct PairGroup : RowBlockStages<Traits> {
  using RowBlockStages<Traits>::dout_stage, RowBlockStages<Traits>::gradient_stage;
  using RowBlockStages<Traits>::gradient_parity;
  using T = typename Traits::T;
  using Key = typename Traits::Key;
  using OtherKey = typename Traits::OtherKey;
  using Value = typename Traits::Value;
  using Query = typename Traits::Query;
  using DOut = typename Traits::DOut;
  using Gradient = typename Traits::Gradient;
  static constexpr int kRows = Traits::kRows, kDim = Traits::kDim, kDimV = Traits::kDimV;
  static constexpr int kColumns = Traits::part_columns(kPart);  // of dQ
  static constexpr int kNamedBarrier = 1 + kPart;

  using Scores = KeyScores<Traits>;
  using Operand = KeyOperand<Traits>;
  using QuerySum = float[kColumns / 2];  // 64 rows

  const BackwardParams& p;
  typename Traits::Control& control;
  const uint32_t shared;
  const int warp, lane;

  uint32_t count = 0;  // row blocks so far: sets the places in all rings
  uint32_t tiles = 0;  // blocks of keys so far

  __device__ __forceinline__ PairGroup(const HopperBackwardParams& params,
                                       typename Traits::Control& control, uint32_t shared)
      : p(params.problem),
        control(control),
        shared(shared),
        warp(threadIdx.x % 128 / 32),
        lane(threadIdx.x % 32) {}

  // Of the CTA. Asked for anew, for it takes registers to keep.
  static __device__ __forceinline__ int rank() { return cluster_rank(); }

  static __device__ __forceinline__ void wait(uint64_t& barrier, int parity) {
    mbarrier_wait(shared_address(&barrier), parity);
  }
  // One arrival a warp, in this CTA or in both.
  __device__ __forceinline__ void release(uint64_t& barrier) const {
    __syncwarp();
    if (lane < kWarpArrivals) mbarrier_arrive(shared_address(&barrier));
  }
  __device__ __forceinline__ void release_in_both(uint64_t& barrier) const {
    __syncwarp();
    if (kRacecheck)
      for (int rank = 0; rank < 2; ++rank) mbarrier_arrive_at(shared_address(&barrier), rank);
    else if (lane < 2)
      mbarrier_arrive_at(shared_address(&barrier), lane);
  }

  static __device__ __forceinline__ int query_stage(uint32_t count) {
    return count % Traits::kQueryStages;
  }
  __device__ __forceinline__ uint32_t query_address(uint32_t count) const {
    return shared + Traits::kQueryOffset + query_stage(count) * Query::kBytes;
  }
  __device__ __forceinline__ uint32_t dout_address() const {
    return shared + Traits::kDOutOffset + dout_stage(count) * DOut::kBytes;
  }
  // Before the statistics of the rows of a lane's scores.
  __device__ __forceinline__ uint32_t stat_offset() const {
    return query_stage(count) * Traits::kStatBytes + lane % 4 * 8;
  }
  // Where a lane leaves its weights to the lane that computes their gradients: 16 bytes of every 512.
  __device__ __forceinline__ uint32_t weight_address() const {
    return shared + Traits::kWeightOffset + warp * (Traits::kWeightBytes / 4) + lane * 16;
  }

  // Each warpgroup clears what it multiplies first; what the first one clears is done when it hands weights over.
  template <class TileT>
  __device__ __forceinline__ void clear(uint32_t tile, int first) const {
    clear_rows<TileT>(tile, min(max(first, 0), TileT::kRows), kNamedBarrier);
  }
  // Waits for row block number `count`.
  __device__ __forceinline__ const RowBlock& wait_query(uint32_t count) const {
    wait(control.query_full[query_stage(count)], count / Traits::kQueryStages & 1);
    return control.block[query_stage(count)];
  }
  __device__ __forceinline__ void wait_dout(const KeyTile& tile, const RowBlock& block) const {
    wait(control.dout_full[dout_stage(count)], count / Traits::kDOutStages & 1);
    if (block.flags & kPaddedRows)
      clear<DOut>(dout_address(), tile.visible.q_len - block.first_row);
  }

  // Part of dQ of the row block before. `due`: there is one; else the products are of no use.
  __device__ __forceinline__ void issue_query_sum(QuerySum& dq, bool due) const {
    const int stage = gradient_stage(count - 1);
    if (due) wait(control.gradient_full[stage], gradient_parity(count - 1));
    constexpr int kPanel = Traits::part_begin(kPart) / Key::kColumns;
    const uint32_t ds = shared + Traits::kGradientOffset + stage * Gradient::kBytes;
    const uint32_t own = shared + (rank() * OtherKey::kPanels + kPanel) * Key::kPanelBytes;
    const uint32_t other = shared + Traits::kOtherKeyOffset + kPanel * OtherKey::kPanelBytes;
    warpgroup_arrive();
    multiply_columns<T, Gradient, Key, kColumns, 64>(dq, ds + rank() * Gradient::kPanelBytes, own,
                                                     true);
    multiply_columns<T, Gradient, OtherKey, kColumns, 64>(
        dq, ds + (rank() ^ 1) * Gradient::kPanelBytes, other, false);
    warpgroup_commit();
  }
  // The row block whose dQ is due.
  __device__ __forceinline__ const RowBlock& due_block() const {
    return control.due[4 * kPart + warp];
  }
  // Remembers a row block as that.
  __device__ __forceinline__ void set_due(const RowBlock& block) const {
    __syncwarp();  // all have read the one before
    if (lane == 0) {
      control.due[4 * kPart + warp] = block;
      if (Traits::kInOrder && warp == 0)
        mbarrier_arrive(shared_address(&control.turn[kPart].announced));
    }
    __syncwarp();
  }
  // There is none any more.
  __device__ __forceinline__ void end_turns() const {
    if (!Traits::kInOrder || warp != 0 || lane != 0) return;
    control.due[4 * kPart].block = -1;
    mbarrier_arrive(shared_address(&control.turn[kPart].announced));
  }
  // After the products of issue_query_sum(): adds it to the sum in global memory.
  __device__ __forceinline__ void add_query_sum(const QuerySum& dq) const {
    release_in_both(control.gradient_empty[gradient_stage(count - 1)]);
    if (Traits::kInOrder) await_come(control.turn[kPart], count);
    const RowBlock& due = control.due[4 * kPart + warp];
    const int64_t block = due.block;
    const int part = 4 * rank() + warp;
    float* to = p.dq_sum + block * (kRows * kDim) + part * (16 * Traits::kQueryColumns) +
                Traits::part_begin(kPart) * 16 + lane * 4;
#pragma unroll
    for (int i = 0; i < kColumns / 2; i += 4)
      add_global_float4(to + i * 32, dq[i], dq[i + 1], dq[i + 2], dq[i + 3]);
    if (Traits::kInOrder) release(control.turn[kPart].added);
  }

  // The keys' rows of dK or dV, zeros if no row sees them.
  template <int kWidth>
  __device__ __forceinline__ void store(void* to, int dim, const float (&d)[kWidth / 2],
                                        float scale, const KeyTile& tile) const {
    const Sequence& s = tile.sequence;
    const int first = tile.first_key + Traits::kCtaKeys * rank() + 16 * warp;
    const int counted = tile.kind == KeyTileKind::kSeen ? s.kv_len - first : 0;
    const int64_t row = (s.k_first + first) * p.kv_heads + tile.kv_head;
    store_rows_of_warp<T, kWidth>(static_cast<T*>(to) + row * dim,
                                  static_cast<int64_t>(p.kv_heads) * dim, s.k_rows - first, counted,
                                  dim, d, scale, lane);
  }
};

}  // namespace jax_baracuda
