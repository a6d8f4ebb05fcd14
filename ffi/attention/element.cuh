// The CUDA type of a DType.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/dtype.h"

namespace jax_baracuda {

template <DType dtype>
struct ElementOf;
template <>
struct ElementOf<DType::kF16> {
  using Type = __half;
};
template <>
struct ElementOf<DType::kBF16> {
  using Type = __nv_bfloat16;
};
template <>
struct ElementOf<DType::kF32> {
  using Type = float;
};
template <DType dtype>
using Element = typename ElementOf<dtype>::Type;

}  // namespace jax_baracuda
