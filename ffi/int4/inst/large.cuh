// What an instantiation file needs: the Hopper kernel for many rows and the table entry that launches it.
#pragma once

#include "int4/element.cuh"
#include "int4/large.cuh"
#include "int4/launch.h"

namespace jax_baracuda {

template <DType dtype, int index, int scale_rows>
LargeInt4Kernel large_int4_kernel_entry() {
  static constexpr LargeTile tile = kLargeTiles[index];
  using Traits = LargeTraits<Int4Element<dtype>, tile.strips, tile.channel_groups,
                             tile.depth_groups, tile.n, tile.stages, scale_rows>;
  static constexpr auto kernel = int4_large_kernel<Traits>;
  return {dtype,
          scale_rows,
          tile,
          Traits::kSharedBytes,
          Traits::kThreads,
          [] {
            return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        Traits::kSharedBytes);
          },
          [](const cudaLaunchConfig_t& launch, const LargeParams& params) {
            return cudaLaunchKernelEx(&launch, kernel, params);
          }};
}

}  // namespace jax_baracuda
