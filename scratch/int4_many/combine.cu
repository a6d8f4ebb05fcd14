// Adds up the partial sums of the splits that went through the workspace.
#include "int4/element.cuh"
#include "int4/epilogue.cuh"
#include "int4/launch.h"

namespace jax_baracuda {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads)
    int4_combine_kernel(const __grid_constant__ Int4Params p) {
  wait_for_dependency();
  const int width = p.strips * kStrip;
  const int channel = (blockIdx.x * kThreads + threadIdx.x) * 4;
  if (channel >= p.channels) return;
  for (int row = blockIdx.y; row < p.rows; row += gridDim.y) {
    const float* part = p.partials + static_cast<int64_t>(row) * width + channel;
    float4 sum = {};
    for (int split = 0; split < p.splits; ++split)
      sum = sum + __ldcg(reinterpret_cast<const float4*>(part + static_cast<int64_t>(split) *
                                                                    p.rows * width));
    store_output<T>(p, row, channel, sum);
  }
}

using Kernel = void (*)(Int4Params);

Kernel kernel_of(DType dtype) {
  return dtype == DType::kF16 ? int4_combine_kernel<__half> : int4_combine_kernel<__nv_bfloat16>;
}

}  // namespace

cudaError_t prepare_int4_combine(DType dtype) {
  cudaFuncAttributes attributes;  // asking for them loads the kernel
  return cudaFuncGetAttributes(&attributes, kernel_of(dtype));
}

cudaError_t launch_int4_combine(DType dtype, const Int4Params& p, bool programmatic,
                                cudaStream_t stream) {
  const int quads = (p.channels + 3) / 4;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch = {};
  launch.gridDim = dim3((quads + kThreads - 1) / kThreads, p.rows < 65535 ? p.rows : 65535);
  launch.blockDim = dim3(kThreads);
  launch.stream = stream;
  launch.attrs = &attribute;
  launch.numAttrs = programmatic ? 1 : 0;
  return cudaLaunchKernelEx(&launch, kernel_of(dtype), p);
}

}  // namespace jax_baracuda
