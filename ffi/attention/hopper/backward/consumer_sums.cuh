// The way out of dQ's terms: from a consumer warpgroup's registers to the sums in global memory, and what it says of that.
#pragma once

#include "attention/hopper/backward/consumer_base.cuh"
#include "attention/hopper/backward/conversion.cuh"
#include "attention/hopper/backward/results.cuh"
#include "device/bulk.cuh"
#include "device/elect.cuh"

namespace jax_baracuda {

template <class Traits>
struct BackwardConsumerSums : BackwardConsumerBase<Traits> {
  using Base = BackwardConsumerBase<Traits>;
  using Base::BackwardConsumerBase, Base::block_before, Base::control, Base::count, Base::group;
  using Base::kDim, Base::kRows, Base::lane, Base::launch, Base::p, Base::release, Base::shared;
  using Base::tiles, Base::wait, Base::warp, Base::warp_index;
  using typename Base::QuerySum;

  uint32_t told = 0;  // tiles of which it has been said that their terms have been added

  // A warp's part of shared memory, for what is on its way out.
  __device__ __forceinline__ uint32_t buffer_address() const {
    return shared + Traits::kSumOffset + warp_index() * Traits::kWarpQueryBytes;
  }
  // Waits until what was sent from there last has been read.
  __device__ __forceinline__ void wait_buffer() const {
    if (elect_lane()) bulk_wait_read();
    __syncwarp();
  }

  // A warp's part of dQ to shared memory.
  __device__ __forceinline__ void leave_query_gradient(const QuerySum& dq) {
    if (adds_in_order<Traits>(p)) return hand_query_gradient(dq);
    const int block = block_before().block;  // now: a load would wait for the stores
    wait_buffer();
    store_query_sum(buffer_address(), dq, lane);
    if (elect_lane()) control.left[warp_index()] = block;
  }
  // From there it begins to be added to the sum in global memory. Not at once: the fence would wait for the stores.
  __device__ __forceinline__ void send_query_gradient(const KeyTile& tile) const {
    if (adds_in_order<Traits>(p)) return;
    fence_async_shared();
    __syncwarp();
    if (elect_lane()) {
      const int buffer = warp_index();
      const int64_t block = control.left[buffer];
      if (block < 0) return;
      control.left[buffer] = -1;
      const int part = buffer % Traits::kQueryParts;
      bulk_add(tile.sums + block * (kRows * kDim) + part * (Traits::kWarpQueryBytes / 4),
               buffer_address(), Traits::kWarpQueryBytes);
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
      sum.block = block_before().block;
      sum.turn = block_before().turn;
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
    if (warp == 0 && lane == 0) {
      added.row = tile.sequence.index * p.kv_heads + tile.kv_head;
      added.parts = Traits::kDivides && tile.part >= 0 ? 1 : launch.parts;
    }
    if (elect_lane()) bulk_wait();
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

  // When there are no more tiles: until buffers are free.
  __device__ __forceinline__ void end_additions() {
    if constexpr (Traits::kSumGroup) {
      if (launch.done) named_barrier_sync(kSumsEnded, Traits::kConsumers + 128);
    } else if (adds_in_order<Traits>(p)) {
      end_query_gradients();
    } else if (Traits::kConverts && launch.done) {
      end_tiles();
    } else if (elect_lane()) {
      bulk_wait();
    }
  }
};

}  // namespace jax_baracuda
