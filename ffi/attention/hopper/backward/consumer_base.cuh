// What a consumer warpgroup of the backward pass knows of its work: where things lie in shared memory, what it waits for and releases,
// and the products that it issues.
#pragma once

#include "attention/hopper/backward/products.cuh"
#include "attention/hopper/backward/scores.cuh"
#include "attention/hopper/backward/traits.cuh"
#include "device/math.cuh"
#include "device/tma.cuh"

namespace jax_baracuda {

template <class Traits>
struct BackwardConsumerBase : RowBlockStages<Traits> {
  using RowBlockStages<Traits>::dout_stage, RowBlockStages<Traits>::gradient_stage;
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

  __device__ __forceinline__ BackwardConsumerBase(const HopperBackwardParams& params,
                                                  typename Traits::Control& control,
                                                  uint32_t shared, int group)
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
  __device__ __forceinline__ int query_stage_before() const {
    return query_place.stage == 0 ? Traits::kQueryStages - 1 : query_place.stage - 1;
  }
  __device__ __forceinline__ uint32_t query_address() const {
    return shared + Traits::kQueryOffset + query_place.stage * Query::kBytes;
  }
  __device__ __forceinline__ uint32_t dout_address() const {
    return shared + Traits::kDOutOffset + dout_stage(count) * DOut::kBytes;
  }

  __device__ __forceinline__ int key_stage() const { return tiles % Traits::kKeyStages; }
  __device__ __forceinline__ uint32_t key_address() const {
    return shared + key_stage() * Key::kBytes;
  }

  __device__ __forceinline__ uint32_t value_address(int row) const {
    return shared + Traits::kValueOffset + Value::row_offset(row);
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
    if (lane < kWarpArrivals) mbarrier_arrive(shared_address(&barrier));
  }

  // S^T = K Q^T and dP^T = V dO^T.
  __device__ __forceinline__ void issue_scores(Scores& s) const {
    multiply_rows<T, Key, Query>(s, key_address() + Key::row_offset(64 * group), query_address());
  }
  template <class StateT>
  __device__ __forceinline__ void issue_weight_gradients(StateT& r) const {
    if constexpr (Traits::kHoldsValues)
      multiply_rows<T, Value, DOut>(r.dp, r.values, value_address(64 * group), dout_address());
    else
      multiply_rows<T, Value, DOut>(r.dp, value_address(64 * group), dout_address(),
                                    !Traits::kBeginsWithDelta);
  }
  // dQ = dS K
  __device__ __forceinline__ void issue_query_gradient(QuerySum& dq, int stage) const {
    const uint32_t first_row =
        Traits::kSplit == QuerySplit::kRows ? Gradient::row_offset(64 * group) : 0;
    const uint32_t first_column =
        Traits::kSplit == QuerySplit::kColumns ? Key::column_offset(kQueryColumns * group) : 0;
    multiply_columns<T, Gradient, Key, kQueryColumns, kKeys>(
        dq, shared + Traits::kGradientOffset + stage * Gradient::kBytes + first_row,
        key_address() + first_column, true);
  }

  // dS to shared memory, rows of queries.
  __device__ __forceinline__ void store_gradients(const Operand& ds) const {
    store_score_gradients<Traits>(shared + Traits::kGradientOffset +
                                      gradient_stage(count) * Gradient::kBytes +
                                      group * Gradient::kPanelBytes,
                                  ds, warp, lane);
  }
  // Says that dS is there. The fence waits for what the warp has stored: not before products are under way.
  __device__ __forceinline__ void publish_gradients() const {
    fence_async_shared();
    __syncwarp();
    release(control.gradient_full[gradient_stage(count)]);
  }

  // Of the consumers' warps. With features there are no registers for addresses that follow from it.
  __device__ __forceinline__ int warp_index() const {
    int index = 4 * group + warp;
    if (Traits::kFeatures) asm volatile("" : "+r"(index));
    return index;
  }

  // The row block before the one at hand. With features, for want of registers, each warp has a copy.
  __device__ __forceinline__ const RowBlock& block_before() const {
    return control.recent[Traits::kFeatures ? warp_index() : (count - 1) % 8];
  }
  __device__ __forceinline__ void copy_block_before() const {
    if (!Traits::kFeatures) return;
    int own_lane = lane;
    asm volatile("" : "+r"(own_lane));
    if (own_lane == 0) control.recent[warp_index()] = control.block[query_stage_before()];
    __syncwarp();
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
};

}  // namespace jax_baracuda
