// One lane that acts for its warp (sm_90 and newer).
#pragma once

#include <cstdint>

namespace jax_baracuda {

// Whether this is the lane that the warp has chosen; all lanes ask. In what it alone does, ptxas knows that one lane is
// active. Where a lane is picked by its number it does not, and puts every copy by the copy engine in a loop over the
// lanes, which takes more than a hundred cycles.
__device__ __forceinline__ bool elect_lane() {
  uint32_t chosen = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("{\n .reg .pred p;\n elect.sync _|p, 0xffffffff;\n selp.b32 %0, 1, 0, p;\n}\n"
               : "=r"(chosen));
#endif
  return chosen != 0;
}

}  // namespace jax_baracuda
