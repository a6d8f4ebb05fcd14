// In deterministic calls dQ of a row block gets its terms in one order, which a counter keeps: how many have been added.
#pragma once

#include "attention/backward/walk.cuh"

namespace jax_baracuda {

// One thread waits until it is a block of keys' turn.
__device__ __forceinline__ void await_turn(const int* counter, int turn) {
  if (turn > 0) wait_for_turn(counter, turn);
}

// One thread passes the turn on, after what it knows to have been added.
__device__ __forceinline__ void release_turn(int* counter) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;\n" ::"l"(counter) : "memory");
}

}  // namespace jax_baracuda
