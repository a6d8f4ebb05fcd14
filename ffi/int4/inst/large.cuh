// What an instantiation file needs: the Hopper kernel for many rows and the table entry that launches it.
#pragma once

#include "int4/inst/hopper.cuh"
#include "int4/large_combine.cuh"

namespace jax_baracuda {

// Both kernels.
template <class Traits>
cudaError_t prepare_large() {
  cudaFuncAttributes attributes;  // asking for them loads the kernel
  const cudaError_t error = cudaFuncGetAttributes(&attributes, int4_large_combine_kernel<Traits>);
  return error != cudaSuccess ? error : prepare_hopper<Traits, int4_large_kernel<Traits>>();
}

template <class Traits>
cudaError_t launch_large(const cudaLaunchConfig_t& launch, const HopperParams& params) {
  const cudaError_t error = launch_hopper<int4_large_kernel<Traits>>(launch, params);
  if (error != cudaSuccess || params.stream_tiles == 0) return error;
  return launch_large_combine<Traits>(params, launch.stream);
}

template <DType dtype, int index, int scale_steps>
HopperInt4Kernel large_int4_kernel_entry() {
  static constexpr HopperInt4Tile tile = kLargeTiles[index];
  using Traits =
      LargeTraits<Int4Element<dtype>, tile.channel_groups, tile.n, tile.stages, 4 / scale_steps>;
  return {dtype,
          false,
          index,
          scale_steps,
          Traits::kSharedBytes,
          Traits::kThreads,
          prepare_large<Traits>,
          launch_large<Traits>};
}

}  // namespace jax_baracuda
