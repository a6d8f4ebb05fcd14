// The C++ type of an element type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "common/dtype.h"

namespace jax_baracuda {

template <DType dtype>
using Int4Element = std::conditional_t<dtype == DType::kF16, __half, __nv_bfloat16>;

}  // namespace jax_baracuda
