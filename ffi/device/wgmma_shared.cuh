// Warpgroup matrix products (sm_90a), more of them: operand B as [k][n] with A in shared memory, too, and products that
// begin a sum, whose accumulators the compiler need not know before. See wgmma.cuh.
#pragma once

#include "device/wgmma.cuh"

namespace jax_baracuda {

// Products of 64 x 16 by 16 x kN, A [m][k] in shared memory: add() adds to d, begin() writes it. kTransposed: B is
// [k][n] in shared memory, else [n][k].
template <class T, int kN, bool kTransposed>
struct WarpgroupMmaShared;

#define BARACUDA_NEW_EIGHT(i)                                                                 \
  "=f"(d[i]), "=f"(d[i + 1]), "=f"(d[i + 2]), "=f"(d[i + 3]), "=f"(d[i + 4]), "=f"(d[i + 5]), \
      "=f"(d[i + 6]), "=f"(d[i + 7])
#define BARACUDA_NEW_16 BARACUDA_NEW_EIGHT(0)
#define BARACUDA_NEW_32 BARACUDA_NEW_16, BARACUDA_NEW_EIGHT(8)
#define BARACUDA_NEW_48 BARACUDA_NEW_32, BARACUDA_NEW_EIGHT(16)
#define BARACUDA_NEW_64 BARACUDA_NEW_48, BARACUDA_NEW_EIGHT(24)
#define BARACUDA_NEW_80 BARACUDA_NEW_64, BARACUDA_NEW_EIGHT(32)
#define BARACUDA_NEW_96 BARACUDA_NEW_80, BARACUDA_NEW_EIGHT(40)
#define BARACUDA_NEW_112 BARACUDA_NEW_96, BARACUDA_NEW_EIGHT(48)
#define BARACUDA_NEW_128 BARACUDA_NEW_112, BARACUDA_NEW_EIGHT(56)
#define BARACUDA_NEW_144 BARACUDA_NEW_128, BARACUDA_NEW_EIGHT(64)
#define BARACUDA_NEW_160 BARACUDA_NEW_144, BARACUDA_NEW_EIGHT(72)
#define BARACUDA_NEW_176 BARACUDA_NEW_160, BARACUDA_NEW_EIGHT(80)
#define BARACUDA_NEW_192 BARACUDA_NEW_176, BARACUDA_NEW_EIGHT(88)

#define BARACUDA_WARPGROUP_MMA_SHARED_TEXT(TYPE, N, A, B, SCALE_D, TRANSPOSED)              \
  "{\n .reg .pred p;\n setp.ne.b32 p, " SCALE_D                                             \
  ", 0;\n"                                                                                  \
  " wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" BARACUDA_PLACES_##N \
      "}, " A ", " B ", p, 1, 1, 0, " TRANSPOSED ";\n}\n"
#define BARACUDA_WARPGROUP_MMA_SHARED(T, TYPE, IS_TRANSPOSED, TRANSPOSED, N, A, B)            \
  template <>                                                                                 \
  struct WarpgroupMmaShared<T, N, IS_TRANSPOSED> {                                            \
    static __device__ __forceinline__ void add(float (&d)[N / 2], uint64_t a, uint64_t b) {   \
      asm volatile(BARACUDA_WARPGROUP_MMA_SHARED_TEXT(TYPE, N, A, B, "1", TRANSPOSED)         \
                   : BARACUDA_REGISTERS_##N                                                   \
                   : "l"(a), "l"(b));                                                         \
    }                                                                                         \
    static __device__ __forceinline__ void begin(float (&d)[N / 2], uint64_t a, uint64_t b) { \
      asm volatile(BARACUDA_WARPGROUP_MMA_SHARED_TEXT(TYPE, N, A, B, "0", TRANSPOSED)         \
                   : BARACUDA_NEW_##N                                                         \
                   : "l"(a), "l"(b));                                                         \
    }                                                                                         \
  };
#define BARACUDA_WARPGROUP_MMA_SHARED_ALL(...)                                 \
  BARACUDA_WARPGROUP_MMA_SHARED(__half, "f16", true, "1", __VA_ARGS__)         \
  BARACUDA_WARPGROUP_MMA_SHARED(__nv_bfloat16, "bf16", true, "1", __VA_ARGS__) \
  BARACUDA_WARPGROUP_MMA_SHARED(__half, "f16", false, "0", __VA_ARGS__)        \
  BARACUDA_WARPGROUP_MMA_SHARED(__nv_bfloat16, "bf16", false, "0", __VA_ARGS__)

BARACUDA_WARPGROUP_MMA_SHARED_ALL(32, "%16", "%17")
BARACUDA_WARPGROUP_MMA_SHARED_ALL(64, "%32", "%33")
BARACUDA_WARPGROUP_MMA_SHARED_ALL(96, "%48", "%49")
BARACUDA_WARPGROUP_MMA_SHARED_ALL(128, "%64", "%65")
BARACUDA_WARPGROUP_MMA_SHARED_ALL(192, "%96", "%97")

// begin() with A in registers, B [n][k].
template <class T, int kN>
struct WarpgroupMmaBegin;
#define BARACUDA_WARPGROUP_MMA_BEGIN(T, TYPE, N, A, B)                                  \
  template <>                                                                           \
  struct WarpgroupMmaBegin<T, N> {                                                      \
    static __device__ __forceinline__ void registers_transposed(float (&d)[N / 2],      \
                                                                const uint32_t (&a)[4], \
                                                                uint64_t b) {           \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE      \
                   " {" BARACUDA_PLACES_##N "}, {" A "}, " B ", 0, 1, 1, 0;\n"          \
                   : BARACUDA_NEW_##N                                                   \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));               \
    }                                                                                   \
  };
BARACUDA_WARPGROUP_MMA_BEGIN(__half, "f16", 64, "%32, %33, %34, %35", "%36")
BARACUDA_WARPGROUP_MMA_BEGIN(__nv_bfloat16, "bf16", 64, "%32, %33, %34, %35", "%36")

#undef BARACUDA_WARPGROUP_MMA_BEGIN
#undef BARACUDA_WARPGROUP_MMA_SHARED_ALL
#undef BARACUDA_WARPGROUP_MMA_SHARED
#undef BARACUDA_WARPGROUP_MMA_SHARED_TEXT

}  // namespace jax_baracuda
