// From the product of a query and a key to a base-2 logit.
#pragma once

#include "decode/params.h"
#include "device/math.cuh"

namespace jax_baracuda {

// Soft cap first, then ALiBi: the order of the op's definition.
struct Scorer {
  float scale_log2;    // scale * log2 e, or the cap's outer factor where there is a soft cap
  float inner_scale;   // scale / cap; 0: no soft cap
  __device__ explicit Scorer(const DecodeParams& p)
      : scale_log2((p.soft_cap > 0.0f ? p.soft_cap : p.scale) * kLog2E),
        inner_scale(p.soft_cap > 0.0f ? p.scale / p.soft_cap : 0.0f) {}

  // `slope_log2`: the head's ALiBi slope times log2 e; `distance`: query position minus key position.
  __device__ float operator()(float product, float slope_log2, int distance) const {
    if (inner_scale != 0.0f) product = tanhf(product * inner_scale);
    return product * scale_log2 - slope_log2 * static_cast<float>(distance);
  }
};

}  // namespace jax_baracuda
