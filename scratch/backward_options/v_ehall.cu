#define DIM 64
#define DT DType::kF16
#define OPTS  hopper_backward_kernel_entry<DType::kF16,64,64,16>(), hopper_backward_kernel_entry<DType::kF16,128,128,16>(),
// One variant as a shared library: the kernels for OPTS (a list) at DIM.
#include <vector>
#include "attention/hopper/backward/inst/kernel.cuh"
#ifndef DIMV
#define DIMV DIM
#endif
#ifndef DT
#define DT DType::kBF16
#endif
namespace jax_baracuda {
const std::vector<HopperBackwardKernel>& hopper_backward_kernels() {
  static const std::vector<HopperBackwardKernel> kernels = {
#ifdef BASE
      hopper_backward_kernel_entry<DT, DIM, DIM, false>(), hopper_backward_kernel_entry<DT, DIM, DIM, true>(),
#else
#define ONE(o) hopper_backward_kernel_entry<DT, DIM, DIMV, o>(),
      OPTS
#endif
  };
  return kernels;
}
}  // namespace jax_baracuda
using namespace jax_baracuda;
extern "C" __attribute__((visibility("default"))) long bwd_bytes(const BackwardParams* p) { return hopper_backward_workspace_bytes(*p); }
extern "C" __attribute__((visibility("default"))) int bwd_run(const BackwardParams* p, void* ws) {
  const HopperBackwardKernel* kernel = nullptr;
  int e = plan_hopper_backward(0, DT, *p, &kernel);
  if (e) return e;
  if (!kernel) return 9999;
  return launch_hopper_backward(*kernel, *p, ws, 0);
}
namespace jax_baracuda { const std::vector<HopperBiasGradient>& hopper_bias_gradients() { static const std::vector<HopperBiasGradient> none; return none; } }
