// In deterministic calls dQ of a row block gets its terms in one order. Waiting for a turn is left to a thread for each
// warpgroup, so that the products go on.
#pragma once

#include "attention/backward/walk.cuh"
#include "attention/hopper/backward/traits.cuh"
#include "device/bulk.cuh"

namespace jax_baracuda {

// Adds what the warpgroup leaves in shared memory, until it says that there is no more. One thread.
template <class Traits>
__device__ __forceinline__ void add_in_turn(const BackwardParams& p,
                                            typename Traits::Control& control, uint32_t shared,
                                            int group) {
  constexpr int kBytes = 4 * Traits::kWarpQueryBytes;
  const int part = Traits::kSplit == QuerySplit::kTurns ? 0 : group;
  const uint32_t from = shared + Traits::kSumOffset + group * kBytes;
  QueryGradientSum& sum = control.sum[group];
  for (int parity = 0;; parity ^= 1) {
    mbarrier_wait(shared_address(&sum.full), parity);
    const int64_t block = sum.block;
    if (block < 0) return;
    int* counter = p.turns + block * Traits::kTurns + part;
    wait_for_turn(counter, sum.turn);
    fence_async_all();
    bulk_add(p.dq_sum + block * (Traits::kRows * Traits::kDim) + part * (kBytes / 4), from, kBytes);
    bulk_commit();
    bulk_wait_read();
    mbarrier_arrive(shared_address(&sum.empty));
    bulk_wait();
    fence_async_all();
    pass_turn(counter);
  }
}

}  // namespace jax_baracuda
