#include "decode/inst/kernel.cuh"
namespace jax_baracuda { template DecodeKernel decode_kernel_entry<DType::kBF16, 128, 8, true, true, false>(); }
