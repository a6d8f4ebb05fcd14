// Warpgroup matrix products (sm_90a) whose operand B lies [k][n] in shared memory, A there, too. See wgmma.cuh.
#pragma once

#include "device/wgmma.cuh"

namespace jax_baracuda {

// Products of 64 x 16 by 16 x kN, added to d or, with accumulate 0, written to it: A [m][k], B [k][n].
template <class T, int kN>
struct WarpgroupMmaTransposed;

#define BARACUDA_WARPGROUP_MMA_TRANSPOSED(T, TYPE, N, A, B, ACCUMULATE)                           \
  template <>                                                                                     \
  struct WarpgroupMmaTransposed<T, N> {                                                           \
    static __device__ __forceinline__ void shared(float (&d)[N / 2], uint64_t a, uint64_t b,      \
                                                  int accumulate) {                               \
      asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, " ACCUMULATE ", 0;\n"                      \
                   " wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE               \
                   " {" BARACUDA_PLACES_##N "}, " A ", " B ", p, 1, 1, 0, 1;\n}\n"                \
                   : BARACUDA_REGISTERS_##N                                                       \
                   : "l"(a), "l"(b), "r"(accumulate));                                            \
    }                                                                                             \
  };
#define BARACUDA_WARPGROUP_MMA_TRANSPOSED_OF_TYPES(...)            \
  BARACUDA_WARPGROUP_MMA_TRANSPOSED(__half, "f16", __VA_ARGS__)    \
  BARACUDA_WARPGROUP_MMA_TRANSPOSED(__nv_bfloat16, "bf16", __VA_ARGS__)

BARACUDA_WARPGROUP_MMA_TRANSPOSED_OF_TYPES(32, "%16", "%17", "%18")
BARACUDA_WARPGROUP_MMA_TRANSPOSED_OF_TYPES(64, "%32", "%33", "%34")
BARACUDA_WARPGROUP_MMA_TRANSPOSED_OF_TYPES(96, "%48", "%49", "%50")
BARACUDA_WARPGROUP_MMA_TRANSPOSED_OF_TYPES(128, "%64", "%65", "%66")
BARACUDA_WARPGROUP_MMA_TRANSPOSED_OF_TYPES(192, "%96", "%97", "%98")

#undef BARACUDA_WARPGROUP_MMA_TRANSPOSED_OF_TYPES
#undef BARACUDA_WARPGROUP_MMA_TRANSPOSED

}  // namespace jax_baracuda
