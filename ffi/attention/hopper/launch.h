// From a problem to the Hopper forward kernel. Host interface, free of CUDA device code and of XLA.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "attention/hopper/config.h"
#include "attention/hopper/params.h"

namespace jax_baracuda {

// One compiled kernel. prepare() raises its limits on the current device.
struct HopperKernel {
  DType dtype;
  HopperTile tile;
  cudaError_t (*prepare)();
  cudaError_t (*launch)(const HopperForwardParams& params, int ctas, cudaStream_t stream);
  // Adds up the splits; null where keys are never split.
  cudaError_t (*combine)(const HopperForwardParams& params, cudaStream_t stream);
};

// Defined by ffi/attention/hopper/inst/, one file an instantiation.
template <DType dtype, int dim, int dim_v, int n, int groups, int query_stages, int features,
          TileUse use>
HopperKernel hopper_kernel_entry();

// All of them, none in a build without sm_90a: generated from the list in instantiations.cmake.
const std::vector<HopperKernel>& hopper_kernels();

// What serves a call on this family's kernels.
struct HopperCall {
  const HopperKernel* kernel = nullptr;
  HopperPlan plan;
};

// Bytes of the workspace that every call takes: a counter of tiles. What is there beyond is for splits.
inline constexpr int64_t kHopperWorkspaceBytes = 16;

// The kernel for a problem on a device, ready to run; null where the portable kernels serve it. `workspace_bytes`: without
// the segment ranges.
cudaError_t plan_hopper_forward(int device, DType dtype, const AttentionProblem& problem,
                                int64_t workspace_bytes, HopperCall* call);

// Enqueues it: the same launches for every call with the same shapes.
cudaError_t launch_hopper_forward(const HopperCall& call, const ForwardParams& params,
                                  void* workspace, cudaStream_t stream);

}  // namespace jax_baracuda
