// What an instantiation file needs: the kernel and the table entry that launches it.
#pragma once

#include "attention/element.cuh"
#include "attention/hopper/backward/bias_gradient.cuh"

namespace jax_baracuda {

template <DType dtype>
HopperBiasGradient hopper_bias_gradient_entry() {
  using Traits = BiasGradientTraits;
  static constexpr auto kernel = hopper_bias_gradient_kernel<Element<dtype>>;
  return {dtype, Traits::kSide,
          [] {
            return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        Traits::kSharedBytes);
          },
          [](const HopperBiasGradParams& params, unsigned ctas, cudaStream_t stream) {
            kernel<<<ctas, Traits::kThreads, Traits::kSharedBytes, stream>>>(params);
            return cudaGetLastError();
          }};
}

}  // namespace jax_baracuda
