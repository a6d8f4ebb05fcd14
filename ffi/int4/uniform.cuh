// Numbers that the compiler knows to be the same in all lanes.
#pragma once

namespace jax_baracuda {

// A number that all lanes have: the reduction tells the compiler so, and what follows from it costs no vector registers.
__device__ __forceinline__ int shared_by_lanes(int i) {
  return static_cast<int>(__reduce_max_sync(0xffffffffu, static_cast<unsigned>(i)));
}

}  // namespace jax_baracuda
