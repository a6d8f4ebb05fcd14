// What an instantiation file needs: the kernel and the table entry that launches it.
#pragma once

#include "attention/element.cuh"
#include "attention/hopper/combine.cuh"
#include "attention/hopper/kernel.cuh"
#include "attention/hopper/launch.h"

namespace jax_baracuda {

template <class Traits>
cudaError_t prepare_hopper_forward() {
  if constexpr (Traits::kFewTiles) {
    cudaFuncAttributes attributes;  // asking for them loads the kernel's module
    cudaError_t error =
        cudaFuncGetAttributes(&attributes, combine_splits_kernel<typename Traits::T>);
    if (error != cudaSuccess) return error;
  }
  return cudaFuncSetAttribute(hopper_forward_kernel<Traits>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::kSharedBytes);
}

template <class Traits>
cudaError_t launch_hopper_kernel(const HopperForwardParams& params, int ctas, cudaStream_t stream) {
  if constexpr (Traits::kPairs) {
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {2, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(ctas);
    config.blockDim = dim3(Traits::kThreads);
    config.dynamicSmemBytes = Traits::kSharedBytes;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, hopper_forward_kernel<Traits>, params);
  }
  hopper_forward_kernel<Traits><<<ctas, Traits::kThreads, Traits::kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

template <DType dtype, int dim, int dim_v, int n, int groups, int query_stages, int features,
          TileUse use>
HopperKernel hopper_kernel_entry() {
  static constexpr HopperTile tile =
      hopper_tile(features, dim, dim_v, n, groups, query_stages, use);
  static_assert(tile.n > 0, "no such tile in config.h");
  using Traits = HopperTraits<Element<dtype>, dim, dim_v, n, groups, query_stages, tile.pingpong,
                              tile.overlap, features, use, tile.skips(), tile.staged()>;
  HopperKernel kernel = {dtype, tile, prepare_hopper_forward<Traits>, launch_hopper_kernel<Traits>,
                         nullptr};
  if constexpr (Traits::kFewTiles) kernel.combine = launch_combine_splits<typename Traits::T>;
  return kernel;
}

}  // namespace jax_baracuda
