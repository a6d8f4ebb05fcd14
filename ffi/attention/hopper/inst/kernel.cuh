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
