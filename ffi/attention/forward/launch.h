// From a problem to the forward kernel. Host interface, free of CUDA device code and of XLA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "attention/forward/config.h"
#include "attention/hopper/launch.h"

namespace jax_baracuda {

// One compiled kernel. prepare() raises its limits on the current device.
struct ForwardKernel {
  DType dtype;
  ForwardTile tile;
  bool paged;
  cudaError_t (*prepare)();
  cudaError_t (*launch)(const ForwardParams& params, int64_t ctas, int tiles, cudaStream_t stream);
};

// Defined by ffi/attention/forward/inst/, one file an instantiation.
template <DType dtype, int dim, int dim_v, int m, int n, bool features, bool paged>
ForwardKernel forward_kernel_entry();

// All of them: generated from the list in instantiations.cmake.
const std::vector<ForwardKernel>& forward_kernels();

// The kernel that serves a call: one of the two.
struct ForwardPlan {
  HopperCall hopper;
  const ForwardKernel* portable = nullptr;
};

// Chooses the kernel for the current device and makes it ready. Called in the initialize stage. `portable`: one that runs
// on every GPU, whatever this one is. More workspace than forward_workspace_bytes() lets keys be split.
cudaError_t plan_attention_forward(DType dtype, const AttentionProblem& problem, bool portable,
                                   int64_t workspace_bytes, ForwardPlan* plan);

// Enqueues it: the same launches for every call with the same shapes.
cudaError_t launch_attention_forward(const ForwardPlan& plan, ForwardParams params, void* workspace,
                                     cudaStream_t stream);

// Bytes of the workspace that launch_attention_forward takes at least.
int64_t forward_workspace_bytes(const AttentionProblem& problem);

}  // namespace jax_baracuda
