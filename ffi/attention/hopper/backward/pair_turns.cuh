// In deterministic calls of pairs of CTAs, a thread for each consumer warpgroup waits for the turn of its next part of dQ,
// before that is there, and passes the turn on: the warps only add, and wait for nothing but shared memory.
#pragma once

#include "attention/hopper/backward/pair_traits.cuh"
#include "attention/hopper/backward/turn.cuh"
#include "device/mbarrier.cuh"

namespace jax_baracuda {

// How many turns have come. Not an mbarrier, but where racecheck is to see the order: waiting for that, with dQ in registers,
// spills at D = 256.
__device__ __forceinline__ void set_come(QueryGradientTurn& turn, uint32_t count) {
  if (kRacecheck) mbarrier_arrive(shared_address(&turn.seen));
  asm volatile("st.release.cta.shared::cta.u32 [%0], %1;\n" ::"r"(shared_address(&turn.come)),
               "r"(count)
               : "memory");
}
// A warp waits together: where one lane waits for all, ptxas takes the warp for divided from there on, and the whole loop is
// slower for it.
__device__ __forceinline__ void await_come(const QueryGradientTurn& turn, uint32_t count) {
  if (kRacecheck) return mbarrier_wait(shared_address(&turn.seen), count & 1 ^ 1);
  uint32_t now;
  do {
    asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];\n"
                 : "=r"(now)
                 : "r"(shared_address(&turn.come))
                 : "memory");
  } while (__any_sync(0xffffffffu, now != count));
}

// Until there are no more row blocks. One thread.
template <class Traits>
__device__ __forceinline__ void keep_turns(const BackwardParams& p,
                                           typename Traits::Control& control, int part) {
  QueryGradientTurn& turn = control.turn[part];
  for (uint32_t count = 1;; ++count) {
    const int parity = count & 1 ^ 1;
    mbarrier_wait(shared_address(&turn.announced), parity);
    const RowBlock& due = control.due[4 * part];
    if (due.block < 0) return;
    int* counter = p.turns + int64_t{due.block} * Traits::kCounters + 2 * part + cluster_rank();
    await_turn(counter, due.turn);
    set_come(turn, count);
    mbarrier_wait(shared_address(&turn.added), parity);
    release_turn(counter);
  }
}

}  // namespace jax_baracuda
