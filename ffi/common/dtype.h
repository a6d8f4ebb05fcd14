// Element types that the kernels are instantiated for, named without any CUDA or XLA header.
#pragma once

namespace jax_baracuda {

enum class DType { kF16, kBF16, kF32 };

constexpr int element_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

}  // namespace jax_baracuda
