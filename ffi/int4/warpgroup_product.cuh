// Warpgroup products with the dequantised weights in registers: D [64][kN] += A [64][16] B, B [kN][16] in shared memory.
#pragma once

#include "device/wgmma.cuh"

namespace jax_baracuda {

template <class T, int kN>
struct WeightsMma;

// N, the places of the operands after the accumulator.
#define BARACUDA_WEIGHTS_MMA(T, TYPE, N, A, B, ACCUMULATE)                                 \
  template <>                                                                              \
  struct WeightsMma<T, N> {                                                                \
    static __device__ __forceinline__ void run(float (&d)[N / 2], const uint32_t (&a)[4],  \
                                               uint64_t b, int accumulate) {               \
      asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, " ACCUMULATE                        \
                   ", 0;\n"                                                                \
                   " wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE        \
                   " {" BARACUDA_PLACES_##N "}, {" A "}, " B ", p, 1, 1, 0;\n}\n"          \
                   : BARACUDA_REGISTERS_##N                                                \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate)); \
    }                                                                                      \
  };
#define BARACUDA_WEIGHTS_MMA_OF_TYPES(...)         \
  BARACUDA_WEIGHTS_MMA(__half, "f16", __VA_ARGS__) \
  BARACUDA_WEIGHTS_MMA(__nv_bfloat16, "bf16", __VA_ARGS__)

BARACUDA_WEIGHTS_MMA_OF_TYPES(16, "%8, %9, %10, %11", "%12", "%13")
BARACUDA_WEIGHTS_MMA_OF_TYPES(32, "%16, %17, %18, %19", "%20", "%21")
BARACUDA_WEIGHTS_MMA_OF_TYPES(64, "%32, %33, %34, %35", "%36", "%37")
BARACUDA_WEIGHTS_MMA_OF_TYPES(128, "%64, %65, %66, %67", "%68", "%69")
BARACUDA_WEIGHTS_MMA_OF_TYPES(256, "%128, %129, %130, %131", "%132", "%133")

#undef BARACUDA_WEIGHTS_MMA_OF_TYPES
#undef BARACUDA_WEIGHTS_MMA

}  // namespace jax_baracuda
