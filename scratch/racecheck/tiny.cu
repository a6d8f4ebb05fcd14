// Textbook kernels that are ordered by barriers: what does racecheck say of them?
#include <cstdio>
#include <cstdlib>
#include <cstdint>
#include <cuda_runtime.h>
#include "device/mbarrier.cuh"
#include "device/cluster.cuh"
using namespace jax_baracuda;
// A: warps in pairs use named barriers unevenly, then one barrier of all.
__global__ void tiny_named(int units, int* out) {
  __shared__ int data[256];
  const int pair = threadIdx.x / 64;
  for (int u = pair; u < units; u += 4) named_barrier_sync(1 + pair, 64);
  data[threadIdx.x] = threadIdx.x + units;
  __syncthreads();
  out[blockIdx.x * 256 + threadIdx.x] = data[(threadIdx.x + 64) % 256];
}
// B: the same in two places of shared memory, with a divergent store.
__global__ void tiny_diverged(int units, int rows, int* out) {
  __shared__ int data[4][256];
  const int pair = threadIdx.x / 64;
  for (int u = pair; u < units; u += 4) named_barrier_sync(1 + pair, 64);
  for (int r = 0; r < 4; ++r)
    if (r * 4 + (int)threadIdx.x % 4 < rows) data[r][threadIdx.x] = threadIdx.x + units + r;
  __syncthreads();
  int sum = 0;
  for (int r = 0; r < 4; ++r)
    if (r * 4 + (int)(threadIdx.x + 64) % 4 < rows) sum += data[r][(threadIdx.x + 64) % 256];
  out[blockIdx.x * 256 + threadIdx.x] = sum;
}
struct Record { int first, flags; };
// C: a ring of two records that one warp fills and eight warps empty; kSync: a __syncwarp() before a warp's arrival.
template <bool kSync>
__global__ void tiny_ring(int count, int* out) {
  __shared__ uint64_t full[2], empty[2];
  __shared__ Record record[2];
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(shared_address(&full[i]), 1);
      mbarrier_init(shared_address(&empty[i]), 8);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 128) {
    if (threadIdx.x >= 32) return;
    for (int i = 0; i <= count; ++i) {
      mbarrier_wait(shared_address(&empty[i % 2]), (i / 2 & 1) ^ 1);
      if (lane == 0) {
        record[i % 2] = {(count - 1 - i) * 112, i == count ? 64 : 0};
        mbarrier_arrive(shared_address(&full[i % 2]));
      }
    }
  } else {
    int sum = 0;
    for (int i = 0;; ++i) {
      mbarrier_wait(shared_address(&full[i % 2]), i / 2 & 1);
      const Record r = record[i % 2];
      if (__any_sync(0xffffffffu, r.flags & 64)) break;
      sum += r.first;
      if (kSync) __syncwarp();
      if (lane == 0) mbarrier_arrive(shared_address(&empty[i % 2]));
    }
    out[blockIdx.x * 256 + threadIdx.x - 128] = sum;
  }
}
int main(int, char** a) {
  int* out; cudaMalloc(&out, 1 << 20);
  const int kind = atoi(a[1]), n = atoi(a[2]), m = atoi(a[3]);
  if (kind == 0) tiny_named<<<m, 256>>>(n, out);
  if (kind == 1) tiny_diverged<<<2, 256>>>(n, m, out);
  if (kind == 2) tiny_ring<false><<<m, 384>>>(n, out);
  if (kind == 3) tiny_ring<true><<<m, 384>>>(n, out);
  printf("%s\n", cudaGetErrorString(cudaDeviceSynchronize()));
}
