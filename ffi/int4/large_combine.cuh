// Adds up the sums of the tiles whose depth large.cuh divided, in the order of the depth.
#pragma once

#include "int4/large.cuh"

namespace jax_baracuda {

// The pair that has unit `at` of the divided depth.
__device__ __forceinline__ int stream_pair(const HopperParams& p, int at) {
  const int longer = p.longer_streams * (p.stream_units + 1);
  return at < longer ? at / (p.stream_units + 1)
                     : p.longer_streams + (at - longer) / p.stream_units;
}

inline constexpr int kCombineQuads = 4;  // of a CTA

// A CTA of as many threads as multiply takes `kCombineQuads` quads of a tile: grid (tiles x CTAs of a pair, parts of a tile).
template <class Traits>
__global__ void __launch_bounds__(Traits::kConsumers)
    int4_large_combine_kernel(const __grid_constant__ HopperParams params) {
  const Int4Params& p = params.problem;
  const int tile = blockIdx.x / Traits::kPair, rank = blockIdx.x % Traits::kPair;
  const int first = stream_pair(params, tile * p.depth_tiles);
  const int last = stream_pair(params, (tile + 1) * p.depth_tiles - 1);
  wait_for_dependency();
  if (first == last) return;  // it was not divided
  LargeWork<Traits::kPair> work(params, 0);
  work.place(params.whole_tiles + tile);
  const int rows = p.rows - work.row_block * Traits::kN;
  float4 sums[kCombineQuads] = {};
  for (int pair = first; pair <= last; ++pair) {
    const float4* part = large_part<Traits>(p, (pair + tile) * Traits::kPair + rank) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kCombineQuads; ++i) {
      const int quad = blockIdx.y * kCombineQuads + i;
      if (quad * 8 < rows) sums[i] = sums[i] + __ldcg(part + quad * Traits::kConsumers);
    }
  }
  const int lane = threadIdx.x % 32;
  const int channel = (work.channel_block + rank) * Traits::kChannels + threadIdx.x / 128 * kStrip +
                      threadIdx.x / 32 % 4 * 16 + lane / 4 * 2;
  const int quad = blockIdx.y * kCombineQuads;
  const ChannelPair<typename Traits::T> out(
      p, channel, work.row_block * Traits::kN + quad * 8 + lane % 4 * 2, false, 0);
#pragma unroll
  for (int i = 0; i < kCombineQuads; ++i) out.store(i, sums[i]);
}

template <class Traits>
cudaError_t launch_large_combine(const HopperParams& params, cudaStream_t stream) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch = {};
  launch.gridDim = dim3(static_cast<unsigned>(params.stream_tiles * Traits::kPair),
                        Traits::kN / 8 / kCombineQuads);
  launch.blockDim = dim3(Traits::kConsumers);
  launch.stream = stream;
  launch.attrs = &attribute;
  launch.numAttrs = 1;
  return cudaLaunchKernelEx(&launch, int4_large_combine_kernel<Traits>, params);
}

}  // namespace jax_baracuda
