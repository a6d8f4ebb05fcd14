// From a problem to the backward kernels. Host interface, free of CUDA device code and of XLA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "attention/backward/config.h"
#include "attention/backward/params.h"
#include "attention/hopper/backward/launch.h"

namespace jax_baracuda {

// One compiled kernel. prepare() raises its limits on the current device.
struct BackwardKernel {
  DType dtype;
  BackwardTile tile;
  bool features;
  cudaError_t (*prepare)(int shared_bytes);
  cudaError_t (*launch)(const BackwardParams& params, int64_t ctas, int shared_bytes,
                        cudaStream_t stream);
};

// Defined by ffi/attention/backward/inst/, one file an instantiation.
template <DType dtype, int dim, int dim_v, int keys, bool features>
BackwardKernel backward_kernel_entry();

// All of them: generated from the list in instantiations.cmake.
const std::vector<BackwardKernel>& backward_kernels();

// One of the two kernels, or none where there is nothing to compute.
struct BackwardPlan {
  const HopperBackwardKernel* hopper = nullptr;
  const BackwardKernel* kernel = nullptr;
  DType dtype = DType::kF16;
  int stages = 0;
};

// Chooses the kernel for the current device, for which there is so much workspace, and makes it ready. Called in the
// initialize stage. `portable`: one that runs on every GPU, whatever this one is.
cudaError_t plan_attention_backward(DType dtype, const BackwardParams& problem, bool portable,
                                    int64_t workspace_bytes, BackwardPlan* plan);

// What launch_attention_backward takes of the workspace.
int64_t backward_workspace_bytes(const BackwardParams& problem);

// Enqueues the kernels, if there are any, and those for the gradient of the bias: the same launches for
// every call with the same shapes. Fills in the workspace's part of the parameters itself.
cudaError_t launch_attention_backward(const BackwardPlan& plan, BackwardParams params,
                                      void* workspace, cudaStream_t stream);

// The gradient of a float bias. The workspace holds segment ranges.
cudaError_t plan_attention_bias_grad(DType dtype, const BiasGradParams& params);
cudaError_t launch_attention_bias_grad(DType dtype, BiasGradParams params, void* workspace,
                                       cudaStream_t stream);
// The same of a bias that all rows share, from sums over the rows: [packs, Hq, k_rows].
cudaError_t launch_bias_sums(const BiasGradParams& params, const float* sums, cudaStream_t stream);

// The kernels before and after.
cudaError_t prepare_around_backward(DType dtype);
cudaError_t launch_preprocess(DType dtype, const BackwardParams& params, cudaStream_t stream);
cudaError_t launch_postprocess(DType dtype, const BackwardParams& params, cudaStream_t stream);

}  // namespace jax_baracuda
