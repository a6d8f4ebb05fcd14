// In deterministic calls dQ of a row block gets its terms in one order. Waiting for a turn is left to threads of their own,
// so that the products go on, and to several of them: an addition takes a row block's time or longer from the turn that it
// waits for to the one that it passes on.
#pragma once

#include "attention/hopper/backward/traits.cuh"
#include "attention/hopper/backward/turn.cuh"
#include "device/bulk.cuh"

namespace jax_baracuda {

// Adds what the consumers leave in shared memory, every kAdders-th row block, until they say that there is no more. One
// thread.
template <class Traits>
__device__ __forceinline__ void add_in_turn(const BackwardParams& p,
                                            typename Traits::Control& control, uint32_t shared,
                                            int adder) {
  if (adder >= Traits::kAdders) return;
  QueryGradientSum& sum = control.sum[adder];
  int parity = 0;
  for (uint32_t number = adder;; number += Traits::kAdders, parity ^= 1) {
    mbarrier_wait(shared_address(&sum.full), parity);
    const int64_t block = sum.block;
    if (block < 0) return;
    const uint32_t buffer = number % Traits::kSumBuffers;
    await_turn(p.turns + block * Traits::kCounters, sum.turn);
    fence_async_all();
    bulk_add(p.dq_sum + block * (Traits::kRows * Traits::kDim),
             shared + Traits::kSumOffset + buffer * Traits::kSumBytes, Traits::kSumBytes);
    bulk_commit();
    bulk_wait_read();
    mbarrier_arrive(shared_address(&control.sum_empty[buffer]));
    bulk_wait();
    fence_async_all();
    release_turn(p.turns + block * Traits::kCounters);
  }
}

}  // namespace jax_baracuda
