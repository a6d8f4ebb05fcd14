// What an instantiation file needs: the kernel and the table entry that launches it.
#pragma once

#include "attention/element.cuh"
#include "attention/forward/kernel.cuh"
#include "attention/forward/launch.h"

namespace jax_baracuda {

template <DType dtype, int dim, int dim_v, int m, int n, bool features, bool paged>
ForwardKernel forward_kernel_entry() {
  static constexpr ForwardTile tile =
      forward_tile(sizeof(Element<dtype>), features, dim, dim_v, m, n);
  static_assert(tile.m > 0, "no such tile in config.h");
  static_assert(tile.paged || !paged, "no such tile for pages in config.h");
  using Traits =
      ForwardTraits<Element<dtype>, dim, dim_v, m, n, tile.warps, tile.ctas, features, paged>;
  static constexpr auto kernel = attention_forward_kernel<Traits>;
  return {dtype, tile, paged,
          [] {
            return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        Traits::kSharedBytes);
          },
          [](const ForwardParams& params, int64_t ctas, int tiles, cudaStream_t stream) {
            kernel<<<static_cast<unsigned>(ctas), Traits::kThreads, Traits::kSharedBytes, stream>>>(
                params, tiles);
            return cudaGetLastError();
          }};
}

}  // namespace jax_baracuda
