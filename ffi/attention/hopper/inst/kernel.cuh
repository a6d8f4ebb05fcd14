// What an instantiation file needs: the kernel and the table entry that launches it.
#pragma once

#include "attention/element.cuh"
#include "attention/hopper/kernel.cuh"
#include "attention/hopper/launch.h"

namespace jax_baracuda {

template <DType dtype, int dim, int dim_v, int n, int groups, bool features, bool paged>
HopperKernel hopper_kernel_entry() {
  static constexpr HopperTile tile = hopper_tile(features, dim, dim_v, n, groups);
  static_assert(tile.n > 0, "no such tile in config.h");
  static_assert(tile.paged || !paged, "no such tile for pages in config.h");
  using Traits = HopperTraits<Element<dtype>, dim, dim_v, n, groups, tile.query_stages,
                              tile.pingpong, tile.overlap, features, paged>;
  static constexpr auto kernel = hopper_forward_kernel<Traits>;
  return {dtype, tile, paged,
          [] {
            return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        Traits::kSharedBytes);
          },
          [](const HopperForwardParams& params, int ctas, cudaStream_t stream) {
            kernel<<<ctas, Traits::kThreads, Traits::kSharedBytes, stream>>>(params);
            return cudaGetLastError();
          }};
}

}  // namespace jax_baracuda
