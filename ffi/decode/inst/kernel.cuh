// What an instantiation file needs: the kernel and the table entry that launches it.
#pragma once

#include <type_traits>

#include "decode/kernel.cuh"
#include "decode/launch.h"
#include "decode/ring.cuh"
#include "decode/tile_mma.cuh"
#include "decode/tile_simt.cuh"

namespace jax_baracuda {

template <DType dtype, int dim_tile, int head_tile, bool vector, bool ring>
struct TileFor;
template <int dim_tile, int head_tile, bool vector, bool ring>
struct TileFor<DType::kF16, dim_tile, head_tile, vector, ring> {
  using Tile = MmaTile<__half, dim_tile, head_tile, vector, ring>;
};
template <int dim_tile, int head_tile, bool vector, bool ring>
struct TileFor<DType::kBF16, dim_tile, head_tile, vector, ring> {
  using Tile = MmaTile<__nv_bfloat16, dim_tile, head_tile, vector, ring>;
};
template <int dim_tile, bool vector>
struct TileFor<DType::kF32, dim_tile, 4, vector, false> {
  using Tile = SimtTile<dim_tile, vector>;
};

template <class Tile, bool paged, bool ring, int max_threads>
constexpr auto select_kernel() -> void (*)(DecodeParams) {
  if constexpr (ring) {
    using Fours = std::conditional_t<paged, PagedFours<Tile::kTokens>, ContiguousFours>;
    return decode_ring_kernel<Tile, Fours, max_threads>;
  } else {
    using Source = std::conditional_t<paged, PagedSource, ContiguousSource>;
    return decode_kernel<Tile, Source, max_threads>;
  }
}

template <DType dtype, int dim_tile, int head_tile, bool vector, bool paged, bool ring>
DecodeKernel decode_kernel_entry() {
  using Tile = typename TileFor<dtype, dim_tile, head_tile, vector, ring>::Tile;
  static_assert(Tile::kTokens == warp_tokens(dtype, dim_tile));
  static_assert(!ring || vector);
  constexpr int max_threads =
      32 * (ring ? kMaxRingWarps : max_warps(dtype, dim_tile, head_tile, vector));
  static constexpr auto kernel = select_kernel<Tile, paged, ring, max_threads>();
  return {dtype,
          dim_tile,
          head_tile,
          vector,
          paged,
          ring,
          [](int max_shared_bytes) {
            return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        max_shared_bytes);
          },
          [](cudaFuncAttributes* attributes) { return cudaFuncGetAttributes(attributes, kernel); },
          [](int threads, int shared_bytes, int* ctas_per_sm) {
            return cudaOccupancyMaxActiveBlocksPerMultiprocessor(ctas_per_sm, kernel, threads,
                                                                 shared_bytes);
          },
          [](const cudaLaunchConfig_t& launch, int* clusters) {
            return cudaOccupancyMaxActiveClusters(clusters, kernel, &launch);
          },
          [](const cudaLaunchConfig_t& launch, const DecodeParams& params) {
            return cudaLaunchKernelEx(&launch, kernel, params);
          }};
}

}  // namespace jax_baracuda
