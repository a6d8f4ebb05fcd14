// From a problem to kernel launches. Host interface, free of CUDA device code and of XLA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "decode/params.h"

namespace jax_baracuda {

// Chooses the configuration for the current device and makes its kernels ready to launch there. Called
// in the initialize stage, where loading modules is allowed, and cheap to call again.
cudaError_t plan_decode(const DecodeShape& shape, int64_t workspace_bytes, DecodeConfig* config);

// Enqueues the kernels, as planned on this device: the same launches for every call with the same shapes.
cudaError_t launch_decode(const DecodeShape& shape, const DecodeConfig& config,
                          const DecodeParams& params, cudaStream_t stream);

// One compiled kernel. prepare() raises its limit of shared memory on the current device, and attributes() tells of the code
// that runs there.
struct DecodeKernel {
  DType dtype;
  int dim_tile;
  int head_tile;
  bool vector;
  bool paged;
  bool ring;
  cudaError_t (*prepare)(int max_shared_bytes);
  cudaError_t (*attributes)(cudaFuncAttributes* attributes);
  cudaError_t (*occupancy)(int threads, int shared_bytes, int* ctas_per_sm);
  cudaError_t (*active_clusters)(const cudaLaunchConfig_t& launch, int* clusters);
  cudaError_t (*launch)(const cudaLaunchConfig_t& launch, const DecodeParams& params);
};

// Defined by ffi/decode/inst/, one file an instantiation.
template <DType dtype, int dim_tile, int head_tile, bool vector, bool paged, bool ring>
DecodeKernel decode_kernel_entry();

// All of them: generated from the list in instantiations.cmake.
const std::vector<DecodeKernel>& decode_kernels();

cudaError_t launch_combine(DType dtype, int dim_tile, const DecodeParams& params, bool programmatic,
                           cudaStream_t stream);
cudaError_t prepare_combine(DType dtype, int dim_tile);

}  // namespace jax_baracuda
