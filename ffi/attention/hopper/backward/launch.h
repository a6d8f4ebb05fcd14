// From a problem to the Hopper backward kernels. Host interface, free of CUDA device code and of XLA.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "attention/hopper/backward/config.h"
#include "attention/hopper/backward/params.h"

namespace jax_baracuda {

// The compiled kernels of a tile: before, main and after. prepare() raises their limits on the current device.
struct HopperBackwardKernel {
  DType dtype;
  HopperBackwardTile tile;
  cudaError_t (*prepare)();
  // `row_blocks` of the longest sequence, `ctas` of the main kernel.
  cudaError_t (*launch)(const HopperBackwardParams& params, int row_blocks, int ctas,
                        cudaStream_t stream);
};

// Defined by ffi/attention/hopper/backward/inst/, one file an instantiation.
template <DType dtype, int dim, int dim_v, int features>
HopperBackwardKernel hopper_backward_kernel_entry();

// All of them, none in a build without sm_90a: generated from the list in instantiations.cmake.
const std::vector<HopperBackwardKernel>& hopper_backward_kernels();

// The compiled kernel for the gradient of a bias.
struct HopperBiasGradient {
  DType dtype;
  int side;  // rows and keys of a CTA
  cudaError_t (*prepare)();
  cudaError_t (*launch)(const HopperBiasGradParams& params, unsigned ctas, cudaStream_t stream);
};
template <DType dtype>
HopperBiasGradient hopper_bias_gradient_entry();
const std::vector<HopperBiasGradient>& hopper_bias_gradients();

// The kernels for a problem on a device, ready to run; null where the portable kernels serve it.
cudaError_t plan_hopper_backward(int device, DType dtype, const BackwardParams& problem,
                                 const HopperBackwardKernel** kernel);

// What they take of the workspace, for whatever tile: 0 where no tile fits.
int64_t hopper_backward_workspace_bytes(const BackwardParams& problem);

// The same for the gradient of a bias. The kernel needs no workspace.
cudaError_t plan_hopper_bias_gradient(DType dtype, const BiasGradParams& problem,
                                      const HopperBiasGradient** kernel);
cudaError_t launch_hopper_bias_gradient(const HopperBiasGradient& kernel,
                                        const BiasGradParams& problem, unsigned ctas,
                                        cudaStream_t stream);

// Enqueues them: the same launches for every call with the same shapes. Fills in the workspace's part of the parameters;
// segment ranges are there already.
cudaError_t launch_hopper_backward(const HopperBackwardKernel& kernel, BackwardParams params,
                                   void* workspace, cudaStream_t stream);

}  // namespace jax_baracuda
