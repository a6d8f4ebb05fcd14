// What an instantiation file needs: the Hopper kernel for a medium number of rows and the table entry that launches it.
#pragma once

#include "int4/inst/hopper.cuh"
#include "int4/medium.cuh"

namespace jax_baracuda {

template <DType dtype, int index, int scale_steps>
HopperInt4Kernel medium_int4_kernel_entry() {
  static constexpr HopperInt4Tile tile = kMediumTiles[index];
  using Traits = MediumTraits<Int4Element<dtype>, tile.n, tile.channel_groups, tile.depth_groups,
                              tile.stages, scale_steps>;
  static_assert(kMediumUnit % Traits::kUnit == 0);
  static constexpr auto kernel = int4_medium_kernel<Traits>;
  return {dtype,
          true,
          index,
          scale_steps,
          Traits::kSharedBytes,
          Traits::kThreads,
          prepare_hopper<Traits, kernel>,
          launch_hopper<kernel>};
}

}  // namespace jax_baracuda
