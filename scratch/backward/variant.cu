// One variant as a shared library.
#include <vector>
#include "attention/hopper/backward/inst/kernel.cuh"
#ifndef DIMS
#define DIMS 128
#endif
#ifndef DT
#define DT DType::kBF16
#endif
namespace jax_baracuda {
const std::vector<HopperBackwardKernel>& hopper_backward_kernels() {
  static const std::vector<HopperBackwardKernel> kernels = {
#define ONE(d) hopper_backward_kernel_entry<DT, d, d, false>(),
#ifdef FEAT
      hopper_backward_kernel_entry<DT, 64, 64, true>(), hopper_backward_kernel_entry<DT, 128, 128, true>(),
#endif
#ifdef PAIR
      hopper_backward_kernel_entry<DT, 192, 128, false>(), hopper_backward_kernel_entry<DT, 192, 192, false>(), hopper_backward_kernel_entry<DT, 256, 256, false>(),
#endif
#ifdef OPTS
#define OPT(d) hopper_backward_kernel_entry<DT, d, d, 1>(), hopper_backward_kernel_entry<DT, d, d, 2>(), hopper_backward_kernel_entry<DT, d, d, 8>(), hopper_backward_kernel_entry<DT, d, d, 16>(),
      OPT(128) OPT(64)
#endif
#ifdef D128
      ONE(128)
#endif
#ifdef D64
      ONE(64)
#endif
#ifdef D96
      ONE(96)
#endif
#ifdef D256
      ONE(256)
#endif
  };
  return kernels;
}
}  // namespace jax_baracuda
using namespace jax_baracuda;
#ifdef TRACE
extern "C" __attribute__((visibility("default"))) int bwd_trace(void* out, size_t bytes) {
  cudaDeviceSynchronize();
  return cudaMemcpyFromSymbol(out, g_trace, bytes);
}
#endif
extern "C" __attribute__((visibility("default"))) long bwd_bytes(const BackwardParams* p) { return hopper_backward_workspace_bytes(*p); }
extern "C" __attribute__((visibility("default"))) int bwd_run(const BackwardParams* p, void* ws) {
  const HopperBackwardKernel* kernel = nullptr;
  int e = plan_hopper_backward(0, DT, *p, &kernel);
  if (e) return e;
  if (!kernel) return 9999;
  return launch_hopper_backward(*kernel, *p, ws, 0);
}
