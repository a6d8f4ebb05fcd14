// Do ALU instructions and wgmma / mma.sync overlap? cycles a k-step of all warps / warps a scheduler.
#include <cstdio>
#include <cuda_runtime.h>
#include "device/wgmma.cuh"
#include "device/memory.cuh"
#include "device/mma.cuh"
#include "device/cluster.cuh"
#include "device/tile.cuh"
#include "int4/product.cuh"
using namespace jax_baracuda;
__device__ __forceinline__ void alu(int kind, uint32_t (&r)[8], int n);
template <int kKind, int kCount> __device__ __forceinline__ void alus(uint32_t (&r)[8], uint32_t y) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (kKind == 0) asm volatile("lop3.b32 %0, %0, 0x00f000f1, 0x64006400, 0xea;" : "+r"(r[i % 8]));
    else if constexpr (kKind == 1) asm volatile("add.rn.f16x2 %0, %0, %1;" : "+r"(r[i % 8]) : "r"(y));
    else if constexpr (kKind == 2) asm volatile("fma.rn.f32 %0, %0, %1, %2;" : "+r"(r[i % 8]) : "r"(y), "r"(r[(i + 1) % 8]));
    else { if (i % 2) asm volatile("add.rn.f16x2 %0, %0, %1;" : "+r"(r[i % 8]) : "r"(y)); else asm volatile("lop3.b32 %0, %0, 0x00f000f1, 0x64006400, 0xea;" : "+r"(r[i % 8])); }
  }
}
// kMode 0: RS wgmma, 1: SS wgmma, 2: no product, 3: mma.sync (kN / 8 of them)
template <int kN, int kMode, int kKind, int kCount, int kThreads> __global__ void __launch_bounds__(kThreads, 1) go(long long* out, uint32_t* sink, int iters, uint32_t y) {
  extern __shared__ __align__(1024) unsigned char sm[];
  for (int i = threadIdx.x; i < 16384; i += blockDim.x) ((uint32_t*)sm)[i] = 0;
  __syncthreads();
  float d[kN / 2] = {}; uint32_t a[2][4] = {}; uint32_t r[8] = {y, y, y, y, y, y, y, y};
  float c4[kN / 8][4] = {};
  using Rows = PanelTile<kN, 64>; const uint64_t desc = Rows::descriptor(shared_address(sm)), da = PanelTile<64, 64>::descriptor(shared_address(sm) + 32768);
  asm volatile("fence.proxy.async;" ::: "memory");
  __syncthreads();
  const long long t0 = clock64();
#pragma unroll 1
  for (int i = 0; i < iters; ++i) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      alus<kKind, kCount>(r, y);
      if constexpr (kMode < 2) {
        warpgroup_arrive();
        if constexpr (kMode == 0) WarpgroupMma<__half, kN>::registers_transposed(d, a[k % 2], advance(desc, k * 32), 1); else WarpgroupMma<__half, kN>::shared(d, advance(da, k * 32), advance(desc, k * 32), 1);
        warpgroup_commit(); warpgroup_wait<1>();
        if constexpr (kMode == 0) { asm volatile("" : "+r"(a[(k + 1) % 2][0]), "+r"(a[(k + 1) % 2][1]), "+r"(a[(k + 1) % 2][2]), "+r"(a[(k + 1) % 2][3])); }
      } else if constexpr (kMode == 3) {
#pragma unroll
        for (int n = 0; n < kN / 8; ++n) multiply_add<__half>(c4[n], a[0], y, y);
      }
    }
  }
  if constexpr (kMode < 2) warpgroup_wait<0>();
  __syncthreads();
  const long long t1 = clock64();
  if (threadIdx.x == 0) out[blockIdx.x] = t1 - t0;
  uint32_t s = 0; for (int i = 0; i < 8; ++i) s += r[i]; float f = 0; for (int i = 0; i < kN / 2; ++i) f += d[i]; for (auto& q : c4) for (float v : q) f += v;
  if (s == 0x1234567 && f == 3.0f) *sink = s;
}
template <int kN, int kMode, int kKind, int kCount, int kThreads> double one() {
  static long long* o = nullptr; static uint32_t* s; if (!o) { cudaMalloc(&o, 8 * 132); cudaMalloc(&s, 64); }
  auto k = go<kN, kMode, kKind, kCount, kThreads>; cudaFuncSetAttribute(k, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536 + 1024);
  const int iters = 400; for (int i = 0; i < 2; ++i) k<<<4, kThreads, 65536>>>(o, s, iters, 0x3c003c00u);
  if (cudaDeviceSynchronize() != cudaSuccess) { printf("error %s\n", cudaGetErrorString(cudaGetLastError())); exit(1); }
  long long h[4]; cudaMemcpy(h, o, 32, cudaMemcpyDeviceToHost);
  return (double)h[0] / (iters * 4) / (kThreads / 128);
}
template <int kN, int kMode, int kThreads> void row(const char* n) {
  printf("%-22s N %3d, %d wg | 0: %.1f | LOP 8 %.1f 16 %.1f 24 %.1f | HADD2 8 %.1f 16 %.1f 24 %.1f | FFMA 8 %.1f 16 %.1f 24 %.1f | mix 16 %.1f 24 %.1f\n", n, kN, kThreads / 128, one<kN, kMode, 0, 0, kThreads>(),
    one<kN, kMode, 0, 8, kThreads>(), one<kN, kMode, 0, 16, kThreads>(), one<kN, kMode, 0, 24, kThreads>(), one<kN, kMode, 1, 8, kThreads>(), one<kN, kMode, 1, 16, kThreads>(), one<kN, kMode, 1, 24, kThreads>(),
    one<kN, kMode, 2, 8, kThreads>(), one<kN, kMode, 2, 16, kThreads>(), one<kN, kMode, 2, 24, kThreads>(), one<kN, kMode, 3, 16, kThreads>(), one<kN, kMode, 3, 24, kThreads>());
  fflush(stdout);
}
int main() {
  printf("cycles a k-step of a warpgroup, warpgroups sharing an SM (ALU instructions a k-step and warp beside)\n");
  row<32, 2, 896>("no product"); row<32, 0, 896>("wgmma, A registers"); row<64, 0, 640>("wgmma, A registers"); row<32, 1, 896>("wgmma, A shared"); row<64, 1, 896>("wgmma, A shared"); row<16, 0, 896>("wgmma, A registers");
  row<32, 0, 512>("wgmma, A registers"); row<64, 0, 512>("wgmma, A registers"); row<128, 0, 512>("wgmma, A registers"); row<128, 0, 256>("wgmma, A registers");
  row<16, 3, 512>("mma.sync x N/8"); row<32, 3, 512>("mma.sync x N/8"); row<32, 3, 256>("mma.sync x N/8");
}
