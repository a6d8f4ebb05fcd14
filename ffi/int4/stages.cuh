// Rings of stages in shared memory.
#pragma once

namespace jax_baracuda {

// A place in the ring; the parity that a consumer waits for is that of the round.
template <int kStages>
struct StagePlace {
  int stage = 0, parity = 0;
  __device__ __forceinline__ void next(int count = 1) {
    stage += count;
    if (stage >= kStages) {
      stage -= kStages;
      parity ^= 1;
    }
  }
};

}  // namespace jax_baracuda
