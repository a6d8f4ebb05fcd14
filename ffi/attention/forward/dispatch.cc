// Which compiled kernel serves a problem on the current device, and its grid.
#include <atomic>

#include "attention/forward/launch.h"
#include "attention/segments.h"
#include "common/device_info.h"

namespace jax_baracuda {
namespace {

constexpr int kMaxKernels = 128;

// Kernels that are ready on a device. Threads that race prepare one twice, to the same end.
std::atomic<bool> g_ready[kMaxDevices][kMaxKernels];

cudaError_t prepare(int device, const ForwardKernel& kernel) {
  const auto index = &kernel - forward_kernels().data();
  if (device < kMaxDevices && g_ready[device][index].load(std::memory_order_acquire))
    return cudaSuccess;
  const cudaError_t error = kernel.prepare();
  if (error == cudaSuccess && device < kMaxDevices)
    g_ready[device][index].store(true, std::memory_order_release);
  return error;
}

// Behind the segment ranges, on a whole piece of 16 bytes.
int64_t hopper_workspace_begin(const AttentionProblem& p) {
  return (segment_range_bytes(p) + 15) / 16 * 16;
}

}  // namespace

cudaError_t plan_attention_forward(DType dtype, const AttentionProblem& problem, bool portable,
                                   int64_t workspace_bytes, ForwardPlan* plan) {
  int device = 0, sm_shared = 0, cta_shared = 0;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (!portable) {
    cudaError_t error = plan_hopper_forward(
        device, dtype, problem, workspace_bytes - hopper_workspace_begin(problem), &plan->hopper);
    if (error != cudaSuccess || plan->hopper.kernel) return error;
  }
  if (cudaError_t error = shared_per_multiprocessor(device, &sm_shared); error != cudaSuccess)
    return error;
  if (cudaError_t error = max_shared_per_block(device, &cta_shared); error != cudaSuccess)
    return error;
  const int element = dtype == DType::kF32 ? 4 : 2;
  const bool features = element == 4 || has_features(problem);
  const bool paged = problem.pages.indptr != nullptr;
  const ForwardTile* tile = choose_forward_tile(element, features, paged, problem.dim,
                                                problem.dim_v, sm_shared, cta_shared);
  if (!tile) return cudaErrorInvalidConfiguration;
  for (const ForwardKernel& candidate : forward_kernels()) {
    if (candidate.dtype != dtype || candidate.paged != paged || !(candidate.tile == *tile))
      continue;
    plan->portable = &candidate;
    return prepare(device, candidate);
  }
  return cudaErrorInvalidConfiguration;
}

int64_t forward_workspace_bytes(const AttentionProblem& problem) {
  return hopper_workspace_begin(problem) + kHopperWorkspaceBytes;
}

cudaError_t launch_attention_forward(const ForwardPlan& plan, ForwardParams params, void* workspace,
                                     cudaStream_t stream) {
  if (cudaError_t error = launch_segment_ranges(&params, workspace, stream); error != cudaSuccess)
    return error;
  if (plan.hopper.kernel)
    return launch_hopper_forward(plan.hopper, params,
                                 static_cast<char*>(workspace) + hopper_workspace_begin(params),
                                 stream);
  const ForwardKernel& kernel = *plan.portable;
  const int tiles = (params.max_q + kernel.tile.m - 1) / kernel.tile.m;
  // Packed calls have a row of CTAs a pack more, for the tokens of no sequence.
  const int64_t rows = int64_t{params.packs} * (params.sequences + (params.cu_seqlens_q ? 1 : 0));
  return kernel.launch(params, rows * params.heads * tiles, tiles, stream);
}

}  // namespace jax_baracuda
