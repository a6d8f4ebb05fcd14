// Division by a number that the host knows.
#pragma once

#include "common/divisor.h"

namespace jax_baracuda {

__device__ __forceinline__ unsigned divide(unsigned n, const Divisor& d) {
  return __umulhi(2 * n, d.magic) >> d.shift;
}

}  // namespace jax_baracuda
