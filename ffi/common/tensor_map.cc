#include "common/tensor_map.h"

#include <algorithm>

namespace jax_baracuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found at run time: the library does not link with the driver.
Encode encode_function() {
  static const Encode function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                         cudaEnableDefault, &result);
#else
    cudaError_t error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &result);
#endif
    const bool found = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return found ? reinterpret_cast<Encode>(entry) : nullptr;
  }();
  return function;
}

}  // namespace

cudaError_t encode_tensor_map(DType dtype, const void* data, int64_t packs, int64_t rows, int heads,
                              int dim, int box_rows, int box_columns, CUtensorMap* map) {
  const Encode encode = encode_function();
  if (!encode) return cudaErrorNotSupported;
  // An empty dimension is not allowed; nothing is read of it.
  const uint64_t row = static_cast<uint64_t>(heads) * dim * 2;
  const cuuint64_t dims[] = {
      static_cast<cuuint64_t>(dim), static_cast<cuuint64_t>(std::max<int64_t>(rows, 1)),
      static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(std::max<int64_t>(packs, 1))};
  const cuuint64_t strides[] = {row, static_cast<cuuint64_t>(dim) * 2, row * dims[1]};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows),
                            1, 1};
  const cuuint32_t element_strides[] = {1, 1, 1, 1};
  const CUresult result = encode(
      map,
      dtype == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4,
      const_cast<void*>(data), dims, strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
      box_columns == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace jax_baracuda
