// Checks of FFI buffers.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>

#include "common/dtype.h"
#include "xla/ffi/api/ffi.h"

namespace jax_baracuda {

inline xla::ffi::Error invalid_argument(const char* op, const std::string& what) {
  return xla::ffi::Error::InvalidArgument(std::string(op) + ": " + what);
}

inline bool has_shape(const xla::ffi::AnyBuffer& buffer, xla::ffi::DataType type,
                      std::initializer_list<int64_t> shape) {
  const auto dims = buffer.dimensions();
  return buffer.element_type() == type && dims.size() == shape.size() &&
         std::equal(dims.begin(), dims.end(), shape.begin());
}

// The element type that kernels exist for, of `query`.
inline xla::ffi::Error read_dtype(const char* op, const xla::ffi::AnyBuffer& query, DType* dtype) {
  switch (query.element_type()) {
    case xla::ffi::F16:
      *dtype = DType::kF16;
      break;
    case xla::ffi::BF16:
      *dtype = DType::kBF16;
      break;
    case xla::ffi::F32:
      *dtype = DType::kF32;
      break;
    default:
      return invalid_argument(op, "query must be float16, bfloat16 or float32");
  }
  return xla::ffi::Error::Success();
}

}  // namespace jax_baracuda
