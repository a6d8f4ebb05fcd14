#include <vector>
#include "attention/hopper/backward/inst/kernel.cuh"
namespace jax_baracuda {
const std::vector<HopperBackwardKernel>& hopper_backward_kernels() {
  static const std::vector<HopperBackwardKernel> kernels = {
#define E(a, b, f) hopper_backward_kernel_entry<DT, a, b, f>(),
#define P(f) E(192, 128, f) E(192, 192, f) E(256, 256, f)
#if PART == 0
  E(64, 64, 31) E(128, 128, 31)
#else
  P(1) P(2) P(8) P(16)
#endif
  };
  return kernels;
}
}
