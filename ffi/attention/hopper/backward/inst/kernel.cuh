// What an instantiation file needs: the kernels and the table entry that launches them.
#pragma once

#include <algorithm>

#include "attention/element.cuh"
#include "attention/hopper/backward/around.cuh"
#include "attention/hopper/backward/kernel.cuh"
#include "attention/hopper/backward/launch.h"

namespace jax_baracuda {

template <DType dtype, int dim, int dim_v>
HopperBackwardKernel hopper_backward_kernel_entry() {
  static constexpr HopperBackwardTile tile = hopper_backward_tile(dim, dim_v);
  static_assert(tile.rows > 0, "no such tile in config.h");
  using Traits = HopperBackwardTraits<Element<dtype>, dim, dim_v, tile.rows, tile.split, tile.late,
                                      tile.rounded_weights>;
  static constexpr auto before = hopper_preprocess_kernel<Traits>;
  static constexpr auto kernel = hopper_backward_kernel<Traits>;
  static constexpr auto after = hopper_postprocess_kernel<Traits>;
  return {dtype, tile,
          [] {
            cudaFuncAttributes attributes;  // asking for them loads the kernel's module
            cudaError_t error = cudaFuncGetAttributes(&attributes, before);
            if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, after);
            if (error != cudaSuccess) return error;
            return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        Traits::kSharedBytes);
          },
          [](const HopperBackwardParams& params, int row_blocks, int ctas, cudaStream_t stream) {
            const BackwardParams& p = params.problem;
            const auto around =
                static_cast<unsigned>(int64_t{row_blocks} * p.packs * p.sequences * p.heads);
            if (around == 0) return cudaSuccess;
            before<<<around, kAroundThreads, 0, stream>>>(p, row_blocks, params.counter);
            if (ctas > 0) kernel<<<ctas, Traits::kThreads, Traits::kSharedBytes, stream>>>(params);
            after<<<around, kAroundThreads, 0, stream>>>(p, row_blocks);
            return cudaGetLastError();
          }};
}

}  // namespace jax_baracuda
