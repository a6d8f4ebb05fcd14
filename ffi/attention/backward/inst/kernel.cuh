// What an instantiation file needs: the kernel and the table entry that launches it.
#pragma once

#include "attention/backward/kernel.cuh"
#include "attention/backward/launch.h"
#include "attention/element.cuh"

namespace jax_baracuda {

constexpr BackwardTile backward_tile(DType dtype, int dim, int dim_v, int keys) {
  if (dtype == DType::kF32) {
    for (const BackwardTile& tile : kBackwardTiles32)
      if (tile.dim == dim && tile.dim_v == dim_v && tile.keys == keys) return tile;
  } else {
    for (const BackwardTile& tile : kBackwardTiles16)
      if (tile.dim == dim && tile.dim_v == dim_v && tile.keys == keys) return tile;
  }
  return {};
}

// A constant that a template can refer to.
template <DType dtype, int dim, int dim_v, int keys>
struct BackwardTileOf {
  static constexpr BackwardTile kTile = backward_tile(dtype, dim, dim_v, keys);
  static_assert(kTile.keys > 0, "no such tile in config.h");
};

template <DType dtype, int dim, int dim_v, int keys, bool features>
BackwardKernel backward_kernel_entry() {
  using TileOf = BackwardTileOf<dtype, dim, dim_v, keys>;
  using Traits = BackwardTraits<Element<dtype>, TileOf::kTile, features>;
  static constexpr auto kernel = attention_backward_kernel<Traits>;
  return {dtype, TileOf::kTile, features,
          [](int shared_bytes) {
            return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        shared_bytes);
          },
          [](const BackwardParams& params, int64_t ctas, int shared_bytes, cudaStream_t stream) {
            kernel<<<static_cast<unsigned>(ctas), Traits::kThreads, shared_bytes, stream>>>(params);
            return cudaGetLastError();
          }};
}

}  // namespace jax_baracuda
