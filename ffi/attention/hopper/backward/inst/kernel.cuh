// What an instantiation file needs: the kernels and the table entry that launches them.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention/element.cuh"
#include "attention/hopper/backward/around.cuh"
#include "attention/hopper/backward/kernel.cuh"
#include "attention/hopper/backward/launch.h"
#include "attention/hopper/backward/pair_kernel.cuh"

namespace jax_baracuda {

template <class Traits>
constexpr auto main_kernel() {
  if constexpr (Traits::kCtas == 2)
    return &hopper_pair_kernel<Traits>;
  else
    return &hopper_backward_kernel<Traits>;
}

// There are two main kernels: the other one is that of deterministic calls, or of those that want the gradient of a bias that all
// rows share. Kernels for all features serve deterministic calls, too, those for one do not.
template <class Traits, class Ordered>
using OtherTraits =
    std::conditional_t<Traits::kOption == kRowBias, WithBiasSums<Traits>,
                       std::conditional_t<Traits::kFeatures || Traits::kOption, Traits, Ordered>>;
inline bool takes_other(const BackwardParams& p) { return p.deterministic || p.bias_sums; }

template <class T, int dim, int dim_v, int features, bool pair>
struct TraitsOfTile {
  static constexpr HopperBackwardTile tile = hopper_backward_tile(dim, dim_v, features);
  template <bool sum_group>
  using Of = HopperBackwardTraits<T, dim, dim_v, tile.rows, tile.split, tile.late,
                                  tile.rounded_weights, features, sum_group>;
  using Traits = Of<tile.sum_group>;
  using Other = OtherTraits<Traits, InOrder<Of<false>>>;
};
// The buffers that fit, where two CTAs share a tile.
template <class T, int dim, int dim_v, int features>
struct TraitsOfTile<T, dim, dim_v, features, true> {
  static constexpr int query_stages = dim > 192 ? 2 : 3;
  static constexpr int dout_stages = dim > 192 ? 1 : dim_v > 128 ? 2 : 3;
  using Traits = HopperPairTraits<T, dim, dim_v, query_stages, dout_stages, features>;
  using Other = OtherTraits<Traits, InOrder<Traits>>;
};

template <DType dtype, int dim, int dim_v, int features>
HopperBackwardKernel hopper_backward_kernel_entry() {
  static constexpr HopperBackwardTile tile = hopper_backward_tile(dim, dim_v, features);
  static_assert(tile.rows > 0, "no such tile in config.h");
  using OfTile =
      TraitsOfTile<Element<dtype>, dim, dim_v, features, tile.split == QuerySplit::kPair>;
  using Traits = typename OfTile::Traits;
  using Other = typename OfTile::Other;
  static constexpr auto before = hopper_preprocess_kernel<Traits>;
  static constexpr auto kernel = main_kernel<Traits>(), other = main_kernel<Other>();
  static constexpr auto after = hopper_postprocess_kernel<Traits>;
  return {dtype, tile,
          [] {
            cudaFuncAttributes attributes;  // asking for them loads the kernel's module
            cudaError_t error = cudaFuncGetAttributes(&attributes, before);
            if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, after);
            const auto raise = [&](auto* main, int bytes) {
              if (error == cudaSuccess)
                error =
                    cudaFuncSetAttribute(main, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
            };
            raise(kernel, Traits::kSharedBytes);
            raise(other, Other::kSharedBytes);
            return error;
          },
          [](const HopperBackwardParams& params, int row_blocks, int ctas, cudaStream_t stream) {
            const BackwardParams& p = params.problem;
            const auto around =
                static_cast<unsigned>(int64_t{row_blocks} * p.packs * p.sequences * p.heads);
            if (around == 0) return cudaSuccess;
            before<<<around, kAroundThreads, 0, stream>>>(p, row_blocks, params.counter,
                                                          params.sum_blocks);
            if (ctas > 0 && takes_other(p))
              other<<<ctas, Other::kThreads, Other::kSharedBytes, stream>>>(params);
            else if (ctas > 0)
              kernel<<<ctas, Traits::kThreads, Traits::kSharedBytes, stream>>>(params);
            if (!params.done) after<<<around, kAroundThreads, 0, stream>>>(p, row_blocks);
            return cudaGetLastError();
          }};
}

}  // namespace jax_baracuda
