#include "attention/hopper/backward/inst/bias_gradient.cuh"

namespace jax_baracuda {
template HopperBiasGradient hopper_bias_gradient_entry<DType::kF16>();
}  // namespace jax_baracuda
