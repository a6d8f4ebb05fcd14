// Warpgroup matrix products (sm_90a): 64 rows a warpgroup of 128 threads, B and maybe A in shared memory, asynchronous.
//
// Use: warpgroup_arrive(), products, warpgroup_commit(), then warpgroup_wait<n>(); accumulators and register operands
// must not be touched in between. hold() keeps the compiler from moving accesses over a wait. Lane and
// register of an accumulator are those of mma.sync's 16 x 8 blocks: warp w has rows 16w..16w + 15.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace jax_baracuda {

// Tiles in shared memory are panels of kColumns 16-bit elements, as TMA writes them with the swizzle of that width: 64
// columns, 128 bytes a row, or 32 columns, 64 bytes. A panel starts at a multiple of 1024 bytes.
template <int kRows_, int kDim_, int kColumns_ = kDim_ % 64 == 0 ? 64 : 32>
struct PanelTile {
  static constexpr int kRows = kRows_, kDim = kDim_, kColumns = kColumns_;
  static constexpr int kPanels = kDim / kColumns;
  static constexpr int kPanelBytes = kRows * kColumns * 2;
  static constexpr int kBytes = kPanels * kPanelBytes;
  static_assert(kDim % kColumns == 0 && kPanelBytes % 1024 == 0);

  static constexpr int kGroupBytes = 8 * kColumns * 2;  // 8 rows: a period of the swizzle
  static constexpr uint64_t kSwizzle = kColumns == 64 ? 1 : 2;

  // Descriptor of the tile at a shared address: where it starts, the bytes from panel to panel (read where columns are
  // not the depth of the product), those from 8 rows to the next 8, the swizzle.
  static __device__ __forceinline__ uint64_t descriptor(uint32_t address) {
    constexpr uint64_t kLayout = kSwizzle << 62 | static_cast<uint64_t>(kGroupBytes >> 4) << 32 |
                                 static_cast<uint64_t>(kPanelBytes >> 4) << 16;
    return kLayout | ((address & 0x3ffff) >> 4);
  }
  // Bytes from the start to columns k..k + 15, the depth of one product.
  static constexpr int column_offset(int k) {
    return k / kColumns * kPanelBytes + k % kColumns * 2;
  }
  static constexpr int row_offset(int row) { return row * kColumns * 2; }
};

__device__ __forceinline__ uint64_t advance(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes >> 4);
}

__device__ __forceinline__ void warpgroup_arrive() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Waits until at most kPending of the committed groups are under way.
template <int kPending>
__device__ __forceinline__ void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

template <int kCount>
__device__ __forceinline__ void hold(float (&r)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(r[i])::"memory");
}

// Takes registers from the pool that setmaxnreg hands around, or gives them back; all warps of the warpgroup.
template <int kRegisters>
__device__ __forceinline__ void registers_raise() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void registers_lower() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// Products of 64 x 16 by 16 x kN, added to d or, with accumulate 0, written to it:
//   shared(): A [m][k] and B [n][k], both in shared memory
//   registers(): A in registers as mma.sync's m16n8k16 has it, B [k][n] in shared memory
//   registers_transposed(): the same with B [n][k]
template <class T, int kN>
struct WarpgroupMma;

// Places of 16 columns, 8 registers, in the text of the instruction, and the registers themselves.
#define BARACUDA_PLACES_16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define BARACUDA_PLACES_32 BARACUDA_PLACES_16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define BARACUDA_PLACES_48 BARACUDA_PLACES_32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define BARACUDA_PLACES_64 BARACUDA_PLACES_48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define BARACUDA_PLACES_80 BARACUDA_PLACES_64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define BARACUDA_PLACES_96 BARACUDA_PLACES_80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define BARACUDA_PLACES_112 BARACUDA_PLACES_96 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define BARACUDA_PLACES_128 BARACUDA_PLACES_112 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define BARACUDA_PLACES_144 BARACUDA_PLACES_128 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define BARACUDA_PLACES_160 BARACUDA_PLACES_144 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define BARACUDA_PLACES_176 BARACUDA_PLACES_160 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define BARACUDA_PLACES_192 BARACUDA_PLACES_176 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define BARACUDA_PLACES_208 BARACUDA_PLACES_192 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define BARACUDA_PLACES_224 BARACUDA_PLACES_208 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define BARACUDA_PLACES_240 BARACUDA_PLACES_224 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define BARACUDA_PLACES_256 BARACUDA_PLACES_240 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define BARACUDA_EIGHT(i)                                                                     \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define BARACUDA_REGISTERS_16 BARACUDA_EIGHT(0)
#define BARACUDA_REGISTERS_32 BARACUDA_REGISTERS_16, BARACUDA_EIGHT(8)
#define BARACUDA_REGISTERS_48 BARACUDA_REGISTERS_32, BARACUDA_EIGHT(16)
#define BARACUDA_REGISTERS_64 BARACUDA_REGISTERS_48, BARACUDA_EIGHT(24)
#define BARACUDA_REGISTERS_80 BARACUDA_REGISTERS_64, BARACUDA_EIGHT(32)
#define BARACUDA_REGISTERS_96 BARACUDA_REGISTERS_80, BARACUDA_EIGHT(40)
#define BARACUDA_REGISTERS_112 BARACUDA_REGISTERS_96, BARACUDA_EIGHT(48)
#define BARACUDA_REGISTERS_128 BARACUDA_REGISTERS_112, BARACUDA_EIGHT(56)
#define BARACUDA_REGISTERS_144 BARACUDA_REGISTERS_128, BARACUDA_EIGHT(64)
#define BARACUDA_REGISTERS_160 BARACUDA_REGISTERS_144, BARACUDA_EIGHT(72)
#define BARACUDA_REGISTERS_176 BARACUDA_REGISTERS_160, BARACUDA_EIGHT(80)
#define BARACUDA_REGISTERS_192 BARACUDA_REGISTERS_176, BARACUDA_EIGHT(88)
#define BARACUDA_REGISTERS_208 BARACUDA_REGISTERS_192, BARACUDA_EIGHT(96)
#define BARACUDA_REGISTERS_224 BARACUDA_REGISTERS_208, BARACUDA_EIGHT(104)
#define BARACUDA_REGISTERS_240 BARACUDA_REGISTERS_224, BARACUDA_EIGHT(112)
#define BARACUDA_REGISTERS_256 BARACUDA_REGISTERS_240, BARACUDA_EIGHT(120)

// N, and the places of the operands after the accumulator: with A in shared memory (a, b, accumulate) and in registers.
#define BARACUDA_WARPGROUP_MMA(T, TYPE, N, A, B, ACCUMULATE, A_REGISTERS, B_AFTER,             \
                               ACCUMULATE_AFTER)                                               \
  template <>                                                                                  \
  struct WarpgroupMma<T, N> {                                                                  \
    static __device__ __forceinline__ void shared(float (&d)[N / 2], uint64_t a, uint64_t b,   \
                                                  int accumulate) {                            \
      asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, " ACCUMULATE                            \
                   ", 0;\n"                                                                    \
                   " wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE            \
                   " {" BARACUDA_PLACES_##N "}, " A ", " B ", p, 1, 1, 0, 0;\n}\n"             \
                   : BARACUDA_REGISTERS_##N                                                    \
                   : "l"(a), "l"(b), "r"(accumulate));                                         \
    }                                                                                          \
    BARACUDA_REGISTER_PRODUCT(registers, TYPE, N, A_REGISTERS, B_AFTER, ACCUMULATE_AFTER, "1") \
    BARACUDA_REGISTER_PRODUCT(registers_transposed, TYPE, N, A_REGISTERS, B_AFTER,             \
                              ACCUMULATE_AFTER, "0")                                           \
  };
// KN: whether B is [k][n].
#define BARACUDA_REGISTER_PRODUCT(NAME, TYPE, N, A, B, ACCUMULATE, KN)                   \
  static __device__ __forceinline__ void NAME(float (&d)[N / 2], const uint32_t (&a)[4], \
                                              uint64_t b, int accumulate) {              \
    asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, " ACCUMULATE                        \
                 ", 0;\n"                                                                \
                 " wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE        \
                 " {" BARACUDA_PLACES_##N "}, {" A "}, " B ", p, 1, 1, " KN ";\n}\n"     \
                 : BARACUDA_REGISTERS_##N                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate)); \
  }
#define BARACUDA_WARPGROUP_MMA_OF_TYPES(...)         \
  BARACUDA_WARPGROUP_MMA(__half, "f16", __VA_ARGS__) \
  BARACUDA_WARPGROUP_MMA(__nv_bfloat16, "bf16", __VA_ARGS__)

BARACUDA_WARPGROUP_MMA_OF_TYPES(16, "%8", "%9", "%10", "%8, %9, %10, %11", "%12", "%13")
BARACUDA_WARPGROUP_MMA_OF_TYPES(32, "%16", "%17", "%18", "%16, %17, %18, %19", "%20", "%21")
BARACUDA_WARPGROUP_MMA_OF_TYPES(64, "%32", "%33", "%34", "%32, %33, %34, %35", "%36", "%37")
BARACUDA_WARPGROUP_MMA_OF_TYPES(80, "%40", "%41", "%42", "%40, %41, %42, %43", "%44", "%45")
BARACUDA_WARPGROUP_MMA_OF_TYPES(96, "%48", "%49", "%50", "%48, %49, %50, %51", "%52", "%53")
BARACUDA_WARPGROUP_MMA_OF_TYPES(112, "%56", "%57", "%58", "%56, %57, %58, %59", "%60", "%61")
BARACUDA_WARPGROUP_MMA_OF_TYPES(128, "%64", "%65", "%66", "%64, %65, %66, %67", "%68", "%69")
BARACUDA_WARPGROUP_MMA_OF_TYPES(144, "%72", "%73", "%74", "%72, %73, %74, %75", "%76", "%77")
BARACUDA_WARPGROUP_MMA_OF_TYPES(160, "%80", "%81", "%82", "%80, %81, %82, %83", "%84", "%85")
BARACUDA_WARPGROUP_MMA_OF_TYPES(176, "%88", "%89", "%90", "%88, %89, %90, %91", "%92", "%93")
BARACUDA_WARPGROUP_MMA_OF_TYPES(192, "%96", "%97", "%98", "%96, %97, %98, %99", "%100", "%101")
BARACUDA_WARPGROUP_MMA_OF_TYPES(256, "%128", "%129", "%130", "%128, %129, %130, %131", "%132",
                                "%133")

#undef BARACUDA_WARPGROUP_MMA_OF_TYPES
#undef BARACUDA_REGISTER_PRODUCT
#undef BARACUDA_WARPGROUP_MMA

}  // namespace jax_baracuda
