// The table entry of a kernel for Hopper.
#pragma once

#include "int4/element.cuh"
#include "int4/hopper_params.h"
#include "int4/launch.h"

namespace jax_baracuda {

using HopperLaunch = cudaError_t (*)(const cudaLaunchConfig_t& launch, const HopperParams& params);

template <void (*kernel)(HopperParams)>
cudaError_t launch_hopper_kernel(const cudaLaunchConfig_t& launch, const HopperParams& params) {
  return cudaLaunchKernelEx(&launch, kernel, params);
}

template <class Traits, void (*kernel)(HopperParams)>
HopperInt4Kernel hopper_entry(DType dtype, bool medium, int tile, int scale_steps,
                              HopperLaunch launch = launch_hopper_kernel<kernel>) {
  return {dtype,
          medium,
          tile,
          scale_steps,
          Traits::kSharedBytes,
          Traits::kThreads,
          [] {
            return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        Traits::kSharedBytes);
          },
          launch};
}

}  // namespace jax_baracuda
