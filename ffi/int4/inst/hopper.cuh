// The table entry of a kernel for Hopper.
#pragma once

#include "int4/element.cuh"
#include "int4/hopper_params.h"
#include "int4/launch.h"

namespace jax_baracuda {

template <class Traits, void (*kernel)(HopperParams)>
cudaError_t prepare_hopper() {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              Traits::kSharedBytes);
}

template <void (*kernel)(HopperParams)>
cudaError_t launch_hopper(const cudaLaunchConfig_t& launch, const HopperParams& params) {
  return cudaLaunchKernelEx(&launch, kernel, params);
}

}  // namespace jax_baracuda
