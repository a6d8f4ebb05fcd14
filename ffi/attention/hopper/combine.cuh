// Adds up what the splits of the keys gave: a warp a query row and head, the splits always in the same order.
#pragma once

#include <cuda_runtime.h>

#include "attention/forward/epilogue.cuh"
#include "attention/hopper/epilogue.cuh"
#include "attention/hopper/params.h"
#include "device/memory.cuh"

namespace jax_baracuda {

inline constexpr int kCombineThreads = 256;

// The share of each split in a row, of lane `split`, and the row's LSE. A row that saw no key: shares of 0, LSE -inf.
__device__ __forceinline__ float share_of_split(const HopperForwardParams& p, int64_t at,
                                                int64_t all, const float* sink, int lane,
                                                float* lse) {
  const float own = lane < p.few.splits ? __ldcg(p.few.lse + lane * all + at) : negative_infinity();
  const float top = butterfly_max<1, 16>(own);
  *lse = negative_infinity();
  if (top == negative_infinity()) return 0.0f;
  const float highest = sink ? fmaxf(top, *sink) : top;
  const float weight = exp2f((own - highest) * kLog2E);
  float total = butterfly_sum<1, 16>(weight);
  if (sink) total += exp2f((*sink - highest) * kLog2E);
  *lse = highest + log2f(total) * kLn2;
  return weight / total;
}

template <class T>
__global__ void __launch_bounds__(kCombineThreads)
    combine_splits_kernel(const __grid_constant__ HopperForwardParams params) {
  const ForwardParams& p = params.problem;
  const int lane = threadIdx.x % 32;
  const int64_t all = int64_t{p.packs} * p.q_rows * p.heads;
  const int64_t at = (int64_t{blockIdx.x} * kCombineThreads + threadIdx.x) / 32;
  wait_for_dependency();
  if (at >= all) return;
  const int head = static_cast<int>(at % p.heads);
  const int pack = static_cast<int>(at / p.heads / p.q_rows);
  const int64_t row = at / p.heads - int64_t{pack} * p.q_rows;
  const float* sink = p.sinks ? p.sinks + pack * p.sinks_stride + head : nullptr;
  float lse;
  const float share = share_of_split(params, at, all, sink, lane, &lse);
  if (lane == 0) *lse_of(p, pack, head, row) = lse;
  T* to = static_cast<T*>(p.out) + at * p.dim_v;
  for (int first = 0; first < p.dim_v; first += 128) {
    const int column = first + 4 * lane;
    const bool inside = column < p.dim_v;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (int split = 0; split < params.few.splits; ++split) {
      const float weight = __shfl_sync(0xffffffffu, share, split);
      // A split that saw nothing of this row wrote nothing either.
      if (weight == 0.0f || !inside) continue;
      const float4 part = __ldcg(
          reinterpret_cast<const float4*>(params.few.out + (split * all + at) * p.dim_v + column));
      sum.x += weight * part.x;
      sum.y += weight * part.y;
      sum.z += weight * part.z;
      sum.w += weight * part.w;
    }
    if (inside)
      *reinterpret_cast<uint2*>(to + column) =
          make_uint2(pack_pair<T>(sum.x, sum.y), pack_pair<T>(sum.z, sum.w));
  }
}

template <class T>
cudaError_t launch_combine_splits(const HopperForwardParams& params, cudaStream_t stream) {
  const ForwardParams& p = params.problem;
  const int64_t threads = int64_t{p.packs} * p.q_rows * p.heads * 32;
  cudaLaunchConfig_t launch = {};
  launch.gridDim = dim3(static_cast<unsigned>((threads + kCombineThreads - 1) / kCombineThreads));
  launch.blockDim = dim3(kCombineThreads);
  launch.stream = stream;
  // It may start while the last tiles are at work, and waits for them.
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  launch.attrs = &attribute;
  launch.numAttrs = 1;
  return cudaLaunchKernelEx(&launch, combine_splits_kernel<T>, params);
}

}  // namespace jax_baracuda
