// CUDA errors as ffi::Error, so that a failed launch surfaces as a Python exception with its cause.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "xla/ffi/api/ffi.h"

namespace jax_baracuda {

inline xla::ffi::Error to_ffi_error(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return xla::ffi::Error::Success();
  std::string message = std::string(what) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    message += " (this build of jax_baracuda holds kernels for " JAX_BARACUDA_CUDA_ARCHS_STR
               "; reinstall it with JAX_BARACUDA_CUDA_ARCHS=native on this machine)";
  }
  return xla::ffi::Error::Internal(message);
}

}  // namespace jax_baracuda
