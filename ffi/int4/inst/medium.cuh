// What an instantiation file needs: the Hopper kernel for a medium number of rows and the table entry that launches it.
#pragma once

#include "int4/inst/hopper.cuh"
#include "int4/medium.cuh"
#include "int4/wide.cuh"

namespace jax_baracuda {

// Whether wide.cuh has a tile.
constexpr bool wide(const HopperInt4Tile& tile, int scale_steps) {
  return tile.channel_groups == 7 && tile.n <= 32 && scale_steps == 8;
}

template <class Traits, void (*kernel)(HopperParams)>
HopperInt4Kernel medium_entry(DType dtype, int index, int scale_steps) {
  static_assert(Traits::kUnit == kMediumUnit);
  return {dtype,
          true,
          index,
          scale_steps,
          Traits::kSharedBytes,
          Traits::kThreads,
          prepare_hopper<Traits, kernel>,
          launch_hopper<kernel>};
}

template <DType dtype, int index, int scale_steps>
HopperInt4Kernel medium_int4_kernel_entry() {
  static constexpr HopperInt4Tile tile = kMediumTiles[index];
  using T = Int4Element<dtype>;
  if constexpr (wide(tile, scale_steps)) {
    using Traits = WideTraits<T, tile.n, tile.channel_groups, 4>;
    return medium_entry<Traits, int4_wide_kernel<Traits>>(dtype, index, scale_steps);
  } else {
    using Traits =
        MediumTraits<T, tile.n, tile.channel_groups, tile.depth_groups, tile.stages, scale_steps>;
    return medium_entry<Traits, int4_medium_kernel<Traits>>(dtype, index, scale_steps);
  }
}

}  // namespace jax_baracuda
