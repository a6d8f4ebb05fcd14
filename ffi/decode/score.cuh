// From the product of a query and a key to a base-2 logit.
#pragma once

#include "decode/params.h"
#include "device/math.cuh"

namespace jax_baracuda {

// Scale and soft cap of some products, in place; ALiBi is added to what this gives.
template <int kCount>
__device__ __forceinline__ void scale_products(const DecodeParams& p, float (&products)[kCount]) {
  if (p.capped) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) products[i] = tanhf(products[i] * p.inner_scale);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) products[i] *= p.outer_scale;
}

}  // namespace jax_baracuda
