// What an instantiation file needs: the Hopper kernel for many rows and the table entry that launches it.
#pragma once

#include "int4/inst/hopper.cuh"
#include "int4/large_combine.cuh"

namespace jax_baracuda {

template <DType dtype, int index, int scale_steps>
HopperInt4Kernel large_int4_kernel_entry() {
  static constexpr HopperInt4Tile tile = kLargeTiles[index];
  using Traits = LargeTraits<Int4Element<dtype>, tile.channel_groups, tile.n, tile.stages, 4 / scale_steps>;
  return hopper_entry<Traits, int4_large_kernel<Traits>>(dtype, false, index, scale_steps,
                                                         launch_large<Traits>);
}

}  // namespace jax_baracuda
