#include <vector>
#include "attention/hopper/backward/inst/kernel.cuh"
namespace jax_baracuda {
const std::vector<HopperBackwardKernel>& hopper_backward_kernels() {
  static const std::vector<HopperBackwardKernel> kernels = {
#define ONE(f) hopper_backward_kernel_entry<DT, DIM, DIM, f>(),
  ONE(0) ONE(1) ONE(2) ONE(4) ONE(8) ONE(16)
  };
  return kernels;
}
}
