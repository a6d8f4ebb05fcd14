// A warpgroup that computes dQ = dS K from what the others leave in shared memory. What dQ needs on its way out, waits,
// stores and fences, and the products themselves then lie between those of two other warpgroups, and a tile's last ones
// beside the first ones of the next tile.
#pragma once

#include "attention/hopper/backward/conversion.cuh"
#include "attention/hopper/backward/products.cuh"
#include "attention/hopper/backward/results.cuh"
#include "attention/hopper/backward/traits.cuh"
#include "device/bulk.cuh"
#include "device/elect.cuh"
#include "device/tma.cuh"

namespace jax_baracuda {

template <class Traits>
struct QueryGradientGroup {
  using T = typename Traits::T;
  using Key = typename Traits::Key;
  using Gradient = typename Traits::Gradient;
  static constexpr int kRows = Traits::kRows, kColumns = Traits::kQueryColumns;
  static_assert(kRows == 64 && Traits::kSplit != QuerySplit::kRows);
  static constexpr int kParts = Traits::kQueryParts / 4;  // of kColumns columns
  static constexpr int kPartFloats = Traits::kWarpQueryBytes / 4;
  // So many times 16 keys, the first ones, have their dS in registers: products then read it from shared memory once, not once
  // a part. There is no room for more.
  static constexpr int kHeld = 3;
  static_assert(16 * kHeld <= Gradient::kColumns && Gradient::kColumns == 64);
  using Sum = float[kColumns / 2];
  using Held = uint32_t[kHeld][4];

  const HopperBackwardParams& launch;
  typename Traits::Control& control;
  const uint32_t shared;
  uint32_t count = 0;  // row blocks so far
  uint32_t tiles = 0;  // blocks of keys so far

  __device__ __forceinline__ QueryGradientGroup(const HopperBackwardParams& params,
                                                typename Traits::Control& control, uint32_t shared)
      : launch(params), control(control), shared(shared) {}

  // Asked for anew, as all that follows from it: there are registers for accumulators and little else.
  static __device__ __forceinline__ int thread() {
    int index = threadIdx.x % 128;
    asm volatile("" : "+r"(index));
    return index;
  }
  static __device__ __forceinline__ bool leads_warp() { return elect_lane(); }

  static __device__ __forceinline__ void wait(uint64_t& barrier, int parity) {
    mbarrier_wait(shared_address(&barrier), parity);
  }
  static __device__ __forceinline__ void release(uint64_t& barrier) {
    if (thread() % 32 < kWarpArrivals) mbarrier_arrive(shared_address(&barrier));
  }

  __device__ __forceinline__ int key_stage() const { return tiles % Traits::kKeyStages; }
  __device__ __forceinline__ int stage() const { return count % Traits::kGradientStages; }
  // What the producer has written there is not overwritten before the row block's dS, or the tile's keys, have been released.
  __device__ __forceinline__ const RowBlock& block() const { return control.recent[count % 8]; }
  __device__ __forceinline__ const KeyTile& tile() const { return control.tile[tiles % 3]; }

  __device__ __forceinline__ uint32_t gradients() const {
    return shared + Traits::kGradientOffset + stage() * Gradient::kBytes;
  }
  // The warp's 16 query rows of dS of the first keys.
  __device__ __forceinline__ void load_held(Held& held) const {
    const int lane = thread() % 32;
    const uint32_t row = gradients() + Gradient::row_offset(thread() / 32 * 16 + lane % 16);
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      load_matrices(held[i], row + ((2 * i + lane / 16) ^ lane % 8) * 16);
  }

  __device__ __forceinline__ void multiply_part(Sum& dq, const Held& held, int part) const {
    const uint64_t ds = Gradient::descriptor(gradients());
    const uint64_t keys =
        Key::descriptor(shared + key_stage() * Key::kBytes + Key::column_offset(kColumns * part));
    warpgroup_arrive();
#pragma unroll
    for (int k = 16 * kHeld; k < Traits::kKeys; k += 16)
      multiply<T, kColumns, true>(dq, advance(ds, Gradient::column_offset(k)),
                                  advance(keys, Key::row_offset(k)), k == 16 * kHeld);
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      WarpgroupMma<T, kColumns>::registers(dq, held[i], advance(keys, Key::row_offset(16 * i)), 1);
    warpgroup_commit();
    warpgroup_wait<0>();
    hold(dq);
  }

  // A warp's place in shared memory, for what is on its way out.
  __device__ __forceinline__ uint32_t buffer() const {
    return shared + Traits::kSumOffset + thread() / 32 * Traits::kWarpQueryBytes;
  }
  // A warp's part to the sum in global memory.
  __device__ __forceinline__ void add(const Sum& dq, int part) const {
    if (leads_warp()) bulk_wait_read();
    __syncwarp();
    store_query_sum(buffer(), dq, thread() % 32);
    fence_async_shared();
    __syncwarp();
    if (leads_warp()) {
      bulk_add(tile().sums + int64_t{block().block} * (kRows * Traits::kDim) +
                   (4 * part + thread() / 32) * kPartFloats,
               buffer(), Traits::kWarpQueryBytes);
      bulk_commit();
    }
  }

  // A row block; returns whether it is the tile's last one.
  __device__ __forceinline__ bool process() {
    wait(control.gradient_full[stage()], count / Traits::kGradientStages & 1);
    Held held;
    load_held(held);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      Sum dq;
      multiply_part(dq, held, part);
      if (part == kParts - 1) release(control.gradient_empty[stage()]);
      add(dq, part);
    }
    const bool last = __any_sync(0xffffffffu, block().flags & kLastRows);
    ++count;
    return last;
  }

  // Says that a tile's terms, so many parts of it, have been added, or, with row -1, that there are no more.
  __device__ __forceinline__ void tell_added(int row, int parts) {
    AddedTile& added = control.added[0];
    wait(added.empty, tiles & 1 ^ 1);
    if (thread() == 0) {
      added.row = row;
      added.parts = parts;
    }
    if (leads_warp()) bulk_wait();
    __syncwarp();
    release(added.full);
  }

  __device__ __forceinline__ void run() {
    const bool tells = Traits::kConverts && launch.done;
#pragma unroll 1
    for (;; ++tiles) {
      wait(control.key_full[key_stage()], tiles / Traits::kKeyStages & 1);
      if (__any_sync(0xffffffffu, tile().kind == KeyTileKind::kNone)) break;
      if (__any_sync(0xffffffffu, tile().kind == KeyTileKind::kSeen)) {
#pragma unroll 1
        while (!process()) {
        }
      }
      const int row = tile().sequence.index * launch.problem.kv_heads + tile().kv_head;
      const int parts = Traits::kDivides && tile().part >= 0 ? 1 : launch.parts;
      release(control.key_empty[key_stage()]);
      if (tells) tell_added(row, parts);
    }
    if (tells) {
      tell_added(-1, 0);
      named_barrier_arrive(kSumsEnded, Traits::kConsumers + 128);
    } else if (leads_warp()) {
      bulk_wait();
    }
  }
};

}  // namespace jax_baracuda
