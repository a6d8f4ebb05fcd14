#include <vector>
#include "attention/backward/inst/kernel.cuh"
namespace jax_baracuda {
const std::vector<HopperBackwardKernel>& hopper_backward_kernels() { static const std::vector<HopperBackwardKernel> k; return k; }
const std::vector<BackwardKernel>& backward_kernels() {
  static const std::vector<BackwardKernel> k = {backward_kernel_entry<DType::kBF16, 96, 96, 128, true>(), backward_kernel_entry<DType::kBF16, 192, 192, 64, true>(), backward_kernel_entry<DType::kBF16, 256, 256, 64, true>()};
  return k;
}
}
using namespace jax_baracuda;
extern "C" __attribute__((visibility("default"))) long bwd_bytes(const BackwardParams* p) { return backward_workspace_bytes(*p); }
extern "C" __attribute__((visibility("default"))) int bwd_run(const BackwardParams* p, void* ws) {
  BackwardPlan plan;
  int e = plan_attention_backward(DType::kBF16, *p, true, 1ll << 40, &plan);
  if (e) return e;
  return launch_attention_backward(plan, *p, ws, 0);
}
