#include <vector>
#include "attention/hopper/backward/inst/kernel.cuh"
namespace jax_baracuda {
const std::vector<HopperBackwardKernel>& hopper_backward_kernels() {
  static const std::vector<HopperBackwardKernel> kernels = { hopper_backward_kernel_entry<DType::DT, DD, DV, OPT>(), };
  return kernels;
}
}
