// What an instantiation file needs: the kernel for few rows and the table entry that launches it.
#pragma once

#include "int4/element.cuh"
#include "int4/launch.h"
#include "int4/small.cuh"

namespace jax_baracuda {

template <DType dtype, int index, int scale_steps>
SmallInt4Kernel small_int4_kernel_entry() {
  static constexpr SmallTile tile = kSmallTiles[index];
  using Traits = SmallTraits<Int4Element<dtype>, tile.blocks, tile.channel_warps, tile.depth_warps,
                             tile.stages, tile.ctas_per_sm, tile.warp_blocks, scale_steps>;
  static constexpr auto kernel = int4_small_kernel<Traits>;
  return {dtype,
          scale_steps,
          tile,
          Traits::kSharedBytes,
          [] {
            return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        Traits::kSharedBytes);
          },
          [](const cudaLaunchConfig_t& launch, const Int4Params& params) {
            return cudaLaunchKernelEx(&launch, kernel, params);
          }};
}

}  // namespace jax_baracuda
