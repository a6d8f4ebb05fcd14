// Instantiations and launch of the combine kernel.
#include "decode/combine.cuh"

#include <cstdint>

#include "decode/launch.h"

namespace jax_baracuda {
namespace {

using Kernel = void (*)(DecodeParams, unsigned, bool, bool);

template <class Element, bool vector, bool beside, int blocks>
Kernel kernel_for(int dim_tile) {
  return dim_tile == 64    ? combine_kernel<Element, 64, vector, beside, blocks>
         : dim_tile == 128 ? combine_kernel<Element, 128, vector, beside, blocks>
                           : combine_kernel<Element, 256, vector, beside, blocks>;
}

template <bool vector, bool beside, int blocks>
Kernel kernel_for(DType dtype, int dim_tile) {
  switch (dtype) {
    case DType::kF16:
      return kernel_for<__half, vector, beside, blocks>(dim_tile);
    case DType::kBF16:
      return kernel_for<__nv_bfloat16, vector, beside, blocks>(dim_tile);
    default:
      return kernel_for<float, vector, beside, blocks>(dim_tile);
  }
}

// Requests of lengths that only the device knows, so many that a lane looks at several of them.
constexpr int kBlocks = 8;
bool has_many_requests(const DecodeParams& p) {
  return p.splits == 0 && p.kv_lengths != nullptr && p.batch > 32 && p.batch <= 32 * kBlocks;
}

// For the decode kernel of these parameters.
Kernel kernel_for(DType dtype, int dim_tile, const DecodeParams& p) {
  if (p.head_dim % 4 != 0) return kernel_for<false, false, 0>(dtype, dim_tile);
  const bool beside = p.ring_stages > 0;
  if (has_many_requests(p))
    return beside ? kernel_for<true, true, kBlocks>(dtype, dim_tile)
                  : kernel_for<true, false, kBlocks>(dtype, dim_tile);
  return beside ? kernel_for<true, true, 0>(dtype, dim_tile)
                : kernel_for<true, false, 0>(dtype, dim_tile);
}

}  // namespace

cudaError_t prepare_combine(DType dtype, int dim_tile) {
  for (const Kernel kernel :
       {kernel_for<false, false, 0>(dtype, dim_tile), kernel_for<true, false, 0>(dtype, dim_tile),
        kernel_for<true, true, 0>(dtype, dim_tile),
        kernel_for<true, false, kBlocks>(dtype, dim_tile),
        kernel_for<true, true, kBlocks>(dtype, dim_tile)}) {
    cudaFuncAttributes attributes;  // asking for them loads the kernel
    const cudaError_t error =
        cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t launch_combine(DType dtype, int dim_tile, const DecodeParams& params, bool programmatic,
                           cudaStream_t stream) {
  const int64_t rows = int64_t{params.batch} * params.kv_heads * params.head_blocks;
  const int lanes = params.lanes.divisor;
  const bool by_border = params.splits == 0 && params.ctas - lanes < rows;
  const int64_t candidates = by_border ? params.ctas - lanes : rows;
  if (candidates == 0) return cudaSuccess;
  // Few parts a row: a warp is enough, and more of them fit at once.
  const int64_t most_parts =
      params.splits > 0 ? params.splits : (params.ctas + rows - 1) / rows + 1;
  const bool by_warp = most_parts <= kCombineWarps;
  const int64_t units = candidates * params.block_heads;
  const int64_t grid = by_warp ? (units + kCombineWarps - 1) / kCombineWarps : units;

  cudaLaunchConfig_t launch = {};
  launch.gridDim = dim3(static_cast<unsigned>(grid));
  launch.blockDim = dim3(kCombineWarps * 32);
  launch.stream = stream;
  // It may start while the decode kernel drains (sm_90 and newer).
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  launch.attrs = &attribute;
  launch.numAttrs = programmatic ? 1 : 0;
  return cudaLaunchKernelEx(&launch, kernel_for(dtype, dim_tile, params), params,
                            static_cast<unsigned>(candidates), by_border, by_warp);
}

}  // namespace jax_baracuda
