// Which compiled kernel serves a problem on the current device, its workspace and its grid.
#include <algorithm>
#include <atomic>

#include "attention/backward/launch.h"
#include "attention/segments.h"
#include "common/device_info.h"

namespace jax_baracuda {
namespace {

constexpr int kMaxKernels = 128;

// Kernels that are ready on a device. Threads that race prepare one twice, to the same end.
std::atomic<bool> g_ready[kMaxDevices][kMaxKernels];

cudaError_t prepare(int device, const BackwardKernel& kernel, int max_shared) {
  const auto index = &kernel - backward_kernels().data();
  if (device < kMaxDevices && g_ready[device][index].load(std::memory_order_acquire))
    return cudaSuccess;
  const int element = kernel.dtype == DType::kF32 ? 4 : 2;
  const int stages = kernel.tile.shared_bytes(element, 2) <= max_shared ? 2 : 1;
  cudaError_t error = kernel.prepare(kernel.tile.shared_bytes(element, stages));
  if (error == cudaSuccess) error = prepare_around_backward(kernel.dtype);
  if (error == cudaSuccess && device < kMaxDevices)
    g_ready[device][index].store(true, std::memory_order_release);
  return error;
}

// The parts of the workspace, each from a multiple of 256 bytes on.
struct Workspace {
  int64_t dq_sum, lse2, segments, turns, tickets, size;

  explicit Workspace(const AttentionProblem& p) {
    const int64_t rows = int64_t{p.packs} * p.q_rows * p.heads;
    take(&dq_sum, 4 * rows * ((p.dim + 31) / 32 * 32));
    take(&lse2, 4 * rows);
    take(&segments, segment_range_bytes(p));
    take(&turns, int64_t{4} * p.packs * p.heads * turns_of_pack(p));
    take(&tickets, 4);
  }

 private:
  int64_t used_ = 0;
  void take(int64_t* at, int64_t bytes) {
    *at = used_;
    used_ += (bytes + 255) / 256 * 256;
    size = used_;
  }
};

// What the gradient of a bias takes before all that: its terms.
int64_t bias_sum_bytes(const BackwardParams& p) {
  return p.dbias ? (int64_t{4} * p.packs * p.heads * p.k_rows + 255) / 256 * 256 : 0;
}

// That of the gradient of a bias that all rows share.
BiasGradParams bias_problem(const BackwardParams& p) {
  BiasGradParams of_bias;
  static_cast<AttentionProblem&>(of_bias) = p;
  of_bias.lse = p.lse;
  of_bias.dout = p.dout;
  of_bias.delta = p.delta;
  of_bias.dbias = p.dbias;
  of_bias.bias_rows = 1;
  of_bias.bias_keys = p.bias.keys;
  return of_bias;
}

// Segment ranges, then what the Hopper kernels take.
int64_t segment_part(const AttentionProblem& p) {
  return (segment_range_bytes(p) + 255) / 256 * 256;
}
int64_t hopper_workspace_bytes(const BackwardParams& p) {
  return segment_part(p) + hopper_backward_workspace_bytes(p);
}

}  // namespace

int64_t backward_workspace_bytes(const BackwardParams& problem) {
  return bias_sum_bytes(problem) + Workspace(problem).size;
}

cudaError_t plan_attention_backward(DType dtype, const BackwardParams& problem, bool portable,
                                    int64_t workspace_bytes, BackwardPlan* plan) {
  int device = 0, max_shared = 0;
  plan->dtype = dtype;
  if (problem.dbias)
    if (cudaError_t error = plan_attention_bias_grad(dtype, bias_problem(problem));
        error != cudaSuccess)
      return error;
  if (problem.packs == 0) return cudaSuccess;
  workspace_bytes -= bias_sum_bytes(problem);
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (!portable && hopper_workspace_bytes(problem) <= workspace_bytes) {
    cudaError_t error = plan_hopper_backward(device, dtype, problem, &plan->hopper);
    if (error != cudaSuccess || plan->hopper) return error;
  }
  if (cudaError_t error = max_shared_per_block(device, &max_shared); error != cudaSuccess)
    return error;
  max_shared -= kBackwardStaticBytes;
  const BackwardChoice choice = choose_backward_tile(dtype, problem.dim, problem.dim_v, max_shared);
  if (!choice.tile) return cudaErrorInvalidConfiguration;
  plan->stages = choice.stages;
  const bool features = dtype == DType::kF32 || has_features(problem);
  for (const BackwardKernel& kernel : backward_kernels()) {
    if (kernel.dtype != dtype || kernel.features != features || !(kernel.tile == *choice.tile))
      continue;
    plan->kernel = &kernel;
    return prepare(device, kernel, max_shared);
  }
  return cudaErrorInvalidConfiguration;
}

namespace {

cudaError_t launch_kernels(const BackwardPlan& plan, BackwardParams p, void* workspace,
                           cudaStream_t stream) {
  if (!plan.hopper && !plan.kernel) return cudaSuccess;
  if (plan.hopper) {
    if (cudaError_t error = launch_segment_ranges(&p, workspace, stream); error != cudaSuccess)
      return error;
    return launch_hopper_backward(*plan.hopper, p, static_cast<char*>(workspace) + segment_part(p),
                                  stream);
  }
  const Workspace parts(p);
  char* base = static_cast<char*>(workspace);
  const BackwardTile& tile = plan.kernel->tile;
  p.dq_sum = reinterpret_cast<float*>(base + parts.dq_sum);
  p.lse2 = reinterpret_cast<float*>(base + parts.lse2);
  p.turns = reinterpret_cast<int*>(base + parts.turns);
  p.tickets = reinterpret_cast<int*>(base + parts.tickets);
  p.dq_width = (p.dim + 31) / 32 * 32;
  p.turn_count = turns_of_pack(p);
  p.stages = plan.stages;
  p.key_slots = std::max((p.max_k + tile.keys - 1) / tile.keys, 1);
  cudaError_t error = launch_segment_ranges(&p, base + parts.segments, stream);
  if (error == cudaSuccess) error = launch_preprocess(plan.dtype, p, stream);
  const int64_t ctas = int64_t{p.key_slots} * p.kv_heads * p.packs * p.sequences;
  const int shared_bytes = tile.shared_bytes(plan.dtype == DType::kF32 ? 4 : 2, p.stages);
  if (error == cudaSuccess && ctas > 0) error = plan.kernel->launch(p, ctas, shared_bytes, stream);
  if (error == cudaSuccess) error = launch_postprocess(plan.dtype, p, stream);
  return error;
}

}  // namespace

cudaError_t launch_attention_backward(const BackwardPlan& plan, BackwardParams p, void* workspace,
                                      cudaStream_t stream) {
  char* rest = static_cast<char*>(workspace) + bias_sum_bytes(p);
  // Kernels for such a bias alone add up the terms of its gradient as they go.
  const bool adds_up = p.dbias && plan.hopper && plan.hopper->tile.features == kRowBias;
  cudaError_t error = cudaSuccess;
  if (adds_up) {
    p.bias_sums = static_cast<float*>(workspace);
    error = cudaMemsetAsync(workspace, 0, bias_sum_bytes(p), stream);
  }
  if (error == cudaSuccess) error = launch_kernels(plan, p, rest, stream);
  if (error != cudaSuccess || !p.dbias) return error;
  return adds_up ? launch_bias_sums(bias_problem(p), p.bias_sums, stream)
                 : launch_attention_bias_grad(plan.dtype, bias_problem(p), rest, stream);
}

}  // namespace jax_baracuda
