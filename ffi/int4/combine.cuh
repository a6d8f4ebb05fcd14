// Adds up the partial results of the splits, for GPUs without clusters.
#pragma once

#include <cuda_runtime_api.h>

#include "int4/epilogue.cuh"

namespace jax_baracuda {

inline constexpr int kCombineThreads = 128;

template <class T>
__global__ void __launch_bounds__(kCombineThreads) int4_combine_kernel(const __grid_constant__ Int4Params p) {
  const int width = p.strips * kStrip;
  const int channel = (blockIdx.x * kCombineThreads + threadIdx.x) * 2;
  if (channel >= p.channels) return;
  for (int row = blockIdx.y; row < p.rows; row += gridDim.y) {
    const float* part = p.partials + static_cast<int64_t>(row) * width + channel;
    float2 sum = {0.0f, 0.0f};
    for (int split = 0; split < p.splits; ++split) {
      const float2 other = *reinterpret_cast<const float2*>(part + static_cast<int64_t>(split) * p.rows * width);
      sum.x += other.x;
      sum.y += other.y;
    }
    store_output<T>(p, row, channel, sum);
  }
}

template <class T>
cudaError_t launch_combine(const Int4Params& p, cudaStream_t stream) {
  const int pairs = (p.channels + 1) / 2;
  const dim3 grid((pairs + kCombineThreads - 1) / kCombineThreads, p.rows < 65535 ? p.rows : 65535);
  int4_combine_kernel<T><<<grid, kCombineThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace jax_baracuda
