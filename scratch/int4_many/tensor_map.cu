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

cudaError_t encode_tensor_map(DType dtype, const void* data, const TensorBoxes& boxes,
                              CUtensorMap* map) {
  const Encode encode = encode_function();
  if (!encode) return cudaErrorNotSupported;
  cuuint64_t sizes[4], strides[3];
  cuuint32_t box[4];
  // An empty dimension is not allowed; nothing is read of it.
  for (int i = 0; i < 4; ++i) sizes[i] = std::max<int64_t>(boxes.sizes[i], 1);
  for (int i = 0; i < 3; ++i) strides[i] = static_cast<cuuint64_t>(boxes.strides[i]) * 2;
  for (int i = 0; i < 4; ++i) box[i] = boxes.box[i];
  const cuuint32_t element_strides[] = {1, 1, 1, 1};
  const CUresult result = encode(
      map,
      dtype == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4,
      const_cast<void*>(data), sizes, strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
      boxes.box[0] == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t encode_tensor_map(DType dtype, const void* data, int64_t packs, int64_t rows, int heads,
                              int dim, int box_rows, int box_columns, CUtensorMap* map) {
  const int64_t row = int64_t{heads} * dim;
  const TensorBoxes boxes = {{dim, rows, heads, packs},
                             {row, dim, row * std::max<int64_t>(rows, 1)},
                             {box_columns, box_rows, 1, 1}};
  return encode_tensor_map(dtype, data, boxes, map);
}

}  // namespace jax_baracuda
