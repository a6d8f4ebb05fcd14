// Clocks of a warpgroup product by shape and place of A, with other warpgroups at work.
#include <cstdio>
#include "device/wgmma.cuh"
#include "device/memory.cuh"
#include "device/mbarrier.cuh"
using namespace jax_baracuda;
using T = __nv_bfloat16;
__device__ __forceinline__ uint32_t addr(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
__device__ __forceinline__ float ex2(float x) { float y; asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
// kind of a warpgroup: 0 SS n128, 1 RS n64 (B [k][n]), 2 RS n64 (B [n][k]), 3 SS n64, 4 RS n128, 5 QK then PV as the kernel, 6 exponentials, 7 FFMA, 8 max3, 9 the same as 5 with other accumulators (N 128 RS)
template <int kind>
__device__ __forceinline__ long long work(uint32_t shared, int iterations, float* out) {
  float s[64], o[32];
  uint32_t a[8][4];
  for (int i = 0; i < 64; ++i) s[i] = threadIdx.x * 0.001f + i;
  for (int i = 0; i < 32; ++i) o[i] = 0;
  for (int i = 0; i < 8; ++i) for (int j = 0; j < 4; ++j) a[i][j] = 0x3c003c00u + ((threadIdx.x * 77 + i * 13 + j * 7) % 97) * 0x00030001u;
  const uint64_t q = PanelTile<64, 64>::descriptor(shared), k = PanelTile<128, 64>::descriptor(shared + 8192), v = PanelTile<128, 64>::descriptor(shared + 8192 + 16384);
  __syncthreads();
  long long t0 = clock64();
#pragma unroll 1
  for (int it = 0; it < iterations; ++it) {
    if constexpr (kind <= 5 || kind == 9) {
      warpgroup_arrive();
#pragma unroll
      for (int r = 0; r < (kind == 5 ? 1 : 2); ++r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if constexpr (kind == 0 || kind == 5) WarpgroupMma<T, 128>::shared(s, advance(q, 32 * i), advance(k, 32 * i), 1);
        }
        if constexpr (kind == 5) warpgroup_commit();
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if constexpr (kind == 1 || kind == 5) WarpgroupMma<T, 64>::registers(o, a[i], advance(v, 2048 * i), 1);
          if constexpr (kind == 2) WarpgroupMma<T, 64>::registers_transposed(o, a[i], advance(k, 32 * (i % 4)), 1);
          if constexpr (kind == 3) WarpgroupMma<T, 64>::shared(o, advance(q, 32 * (i % 4)), advance(k, 32 * (i % 4)), 1);
          if constexpr (kind == 4) { if (i < 4) WarpgroupMma<T, 128>::registers_transposed(s, a[i], advance(k, 32 * i), 1); }
          if constexpr (kind == 9) { if (i < 4) WarpgroupMma<T, 128>::registers(s, a[i], advance(v, 2048 * i), 1); }
        }
      }
      warpgroup_commit();
      warpgroup_wait<0>();
      hold(s);
      hold(o);
    } else if constexpr (kind == 6) {
#pragma unroll
      for (int i = 0; i < 64; ++i) s[i] = ex2(s[i]);
    } else if constexpr (kind == 7) {
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int i = 0; i < 64; ++i) asm volatile("fma.rn.f32 %0, %0, %1, %2;" : "+f"(s[i]) : "f"(o[i % 16]), "f"(o[16 + i % 16]));
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int i = 0; i < 32; ++i) asm volatile("max.f32 %0, %0, %1;" : "+f"(o[i % 32]) : "f"(s[2 * i]));
    }
  }
  long long t1 = clock64();
  float sum = 0;
  for (int i = 0; i < 64; ++i) sum += s[i];
  for (int i = 0; i < 32; ++i) sum += o[i];
  out[threadIdx.x] = sum;
  return t1 - t0;
}
template <int k0, int n0, int k1, int n1>
__global__ void __launch_bounds__(128 * (n0 + n1), 1) bench(float* out, long long* clocks, int i0, int i1) {
  extern __shared__ __align__(1024) unsigned char m[];
  for (int i = threadIdx.x; i < 40960 / 2; i += blockDim.x) reinterpret_cast<unsigned short*>(m)[i] = 0x3c00 + (i * 2654435761u >> 25);
  asm volatile("fence.proxy.async;" ::: "memory");
  __syncthreads();
  const int g = __shfl_sync(~0u, threadIdx.x / 128, 0);
  long long t;
  if (g < n0) t = work<k0>(addr(m), i0, out); else t = work<k1>(addr(m), i1, out);
  if (blockIdx.x == 0 && threadIdx.x % 128 == 0) clocks[g] = t;
}
template <int k0, int n0, int k1 = 6, int n1 = 0>
void run(const char* what, int per0, int per1 = 64) {
  static float* out = nullptr; static long long* c = nullptr;
  if (!out) cudaMalloc(&out, 4096), cudaMalloc(&c, 64);
  cudaFuncSetAttribute(bench<k0, n0, k1, n1>, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536);
  const int i0 = 400, i1 = n1 ? 400 : 0;
  for (int r = 0; r < 2; ++r) bench<k0, n0, k1, n1><<<132, 128 * (n0 + n1), 49152>>>(out, c, i0, i1);
  long long h[8];
  cudaMemcpy(h, c, 64, cudaMemcpyDeviceToHost);
  printf("%-58s %d warpgroups: %.1f clocks of an SM each", what, n0, double(h[0]) / i0 / per0 / n0);
  if (n1) printf(" | other: %.2f clocks an instruction (%d)", double(h[n0]) / i1 / per1 / n1, n1);
  printf(" %s\n", cudaGetErrorString(cudaGetLastError()));
}
int main() {
  run<0, 1>("QK: 64x128x16 SS (64)", 8); run<0, 2>("QK", 8); run<0, 3>("QK", 8);
  run<1, 1>("PV: 64x64x16 RS, B [k][n] (32)", 16); run<1, 2>("PV", 16); run<1, 3>("PV", 16);
  run<2, 3>("64x64x16 RS, B [n][k] (32)", 16);
  run<3, 1>("64x64x16 SS (32)", 16); run<3, 3>("64x64x16 SS (32)", 16);
  run<4, 3>("64x128x16 RS, B [n][k] (64)", 8);
  run<9, 3>("64x128x16 RS, B [k][n] (64)", 8);
  run<5, 1>("4 QK, 8 PV (512)", 1); run<5, 2>("4 QK, 8 PV (512)", 1); run<5, 3>("4 QK, 8 PV (512)", 1);
  run<6, 1>("ex2 (8)", 64); run<6, 3>("ex2 (8)", 64); run<7, 1>("FFMA (1)", 256); run<7, 2>("FFMA", 256); run<8, 2>("max (2)", 128);
  run<5, 2, 6, 1>("4 QK, 8 PV beside ex2", 1, 64); run<5, 2, 7, 1>("beside FFMA", 1, 256);  run<5, 2, 8, 1>("beside max", 1, 128); 
  run<1, 2, 6, 1>("PV beside ex2", 16, 64); run<1, 2, 7, 1>("PV beside FFMA", 16, 256); run<0, 2, 7, 1>("QK beside FFMA", 8, 256); run<0, 2, 6, 1>("QK beside ex2", 8, 64);
  return 0;
}
