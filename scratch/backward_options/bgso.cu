// bg_run of a tree.
#include <vector>
#include "attention/backward/launch.h"
#ifdef NEW
#include "attention/hopper/backward/inst/bias_gradient.cuh"
namespace jax_baracuda {
const std::vector<HopperBackwardKernel>& hopper_backward_kernels() { static const std::vector<HopperBackwardKernel> none; return none; }
const std::vector<HopperBiasGradient>& hopper_bias_gradients() {
  static const std::vector<HopperBiasGradient> kernels = {hopper_bias_gradient_entry<DType::kBF16>(), hopper_bias_gradient_entry<DType::kF16>()};
  return kernels;
}
}
#endif
using namespace jax_baracuda;
extern "C" __attribute__((visibility("default"))) int bg_run(const BiasGradParams* p, int f16, void* ws) {
  const DType t = f16 ? DType::kF16 : DType::kBF16;
#ifdef NEW
  int e = plan_attention_bias_grad(t, *p);
#else
  int e = plan_attention_bias_grad(t);
#endif
  return e ? e : launch_attention_bias_grad(t, *p, ws, 0);
}
