// Clocks of an SM's quarter for a warp's Philox call, by warps a quarter and calls at a time.
#include <cstdio>
#include "device/philox.cuh"
using namespace jax_baracuda;
template <int kCalls, int kKind>
__global__ void run(uint32_t* out, uint2 key, uint32_t threshold, long long* clocks) {
  float acc[8]; for (int i = 0; i < 8; ++i) acc[i] = 8388608.0f;
  uint32_t x = 0;
  __syncthreads(); long long t = clock64();
#pragma unroll 1
  for (int r = 0; r < 64; ++r) {
    uint4 w[kCalls];
#pragma unroll
    for (int c = 0; c < kCalls; ++c) w[c] = philox(make_uint4(threadIdx.x / 4, r * 8 * kCalls + threadIdx.x % 4 + 4 * c, 3, 4), key);
#pragma unroll
    for (int c = 0; c < kCalls; ++c) {
      if (kKind == 0) x ^= w[c].x ^ w[c].y ^ w[c].z ^ w[c].w;
      if (kKind == 1) {
        acc[0] = w[c].x < threshold ? acc[0] : acc[0] + 1.0f; acc[1] = w[c].y < threshold ? acc[1] : acc[1] + 1.0f;
        acc[2] = w[c].z < threshold ? acc[2] : acc[2] + 1.0f; acc[3] = w[c].w < threshold ? acc[3] : acc[3] + 1.0f;
      }
    }
  }
  __syncthreads(); t = clock64() - t;
  for (int i = 0; i < 8; ++i) x ^= __float_as_uint(acc[i]);
  out[blockIdx.x * blockDim.x + threadIdx.x] = x; if (threadIdx.x == 0) *clocks = t;
}
template <int kCalls, int kKind> void go(uint32_t* out, long long* c) {
  printf("calls %d kind %d:", kCalls, kKind);
  for (int warps : {1, 2, 3, 4}) {
    for (int r = 0; r < 2; ++r) { run<kCalls, kKind><<<132, 128 * warps>>>(out, make_uint2(5, 6), 429496729u, c); cudaDeviceSynchronize(); }
    printf(" %d warps %.1f", warps, double(*c) / (64.0 * kCalls * warps));
  }
  printf("\n");
}
int main() {
  uint32_t* out; long long* c; cudaMalloc(&out, 132 * 1024 * 4); cudaMallocManaged(&c, 8);
  go<1, 0>(out, c); go<2, 0>(out, c); go<4, 0>(out, c); go<8, 0>(out, c); go<4, 1>(out, c); go<8, 1>(out, c);
}
