#include "int4/launch.h"
namespace jax_baracuda { const std::vector<HopperInt4Kernel>& hopper_int4_kernels() { static const std::vector<HopperInt4Kernel> kernels = {
medium_int4_kernel_entry<DType::kF16, 3, 8>(),
medium_int4_kernel_entry<DType::kF16, 9, 8>(),
medium_int4_kernel_entry<DType::kBF16, 3, 8>(),
medium_int4_kernel_entry<DType::kBF16, 9, 8>(),
}; return kernels; } }
