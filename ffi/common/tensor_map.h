// Tensor maps of matrices, encoded on the host. A map is plain data, passed to a kernel by value.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/dtype.h"

namespace jax_baracuda {

// A tensor of 16-bit elements, the columns innermost and one after the other, in boxes of `box` elements: 64 or 32 columns, which
// sets the swizzle, and up to 256 of the other dimensions. Strides are in elements. A column's stride is 1; the others
// and the address are multiples of 16 bytes.
struct TensorBoxes {
  int64_t sizes[4];
  int64_t strides[3];
  int box[4];
};
cudaError_t encode_tensor_map(DType dtype, const void* data, const TensorBoxes& boxes,
                              CUtensorMap* map);

// An operand [packs, rows, heads, dim] of 16-bit elements, in boxes of one head's `box_rows` rows and `box_columns`
// columns (64 or 32, which sets the swizzle). dim * 2 bytes and the address are multiples of 16.
cudaError_t encode_tensor_map(DType dtype, const void* data, int64_t packs, int64_t rows, int heads,
                              int dim, int box_rows, int box_columns, CUtensorMap* map);

}  // namespace jax_baracuda
