// From the product of a query and a key to a base-2 logit.
#pragma once

#include "decode/params.h"
#include "device/math.cuh"

namespace jax_baracuda {

// Scale and soft cap; ALiBi is added to what this gives.
class Scorer {
 public:
  __device__ explicit Scorer(const DecodeParams& p)
      : capped_(p.soft_cap > 0.0f),
        outer_scale_((capped_ ? p.soft_cap : p.scale) * kLog2E),
        inner_scale_(capped_ ? p.scale / p.soft_cap : 0.0f) {}

  __device__ __forceinline__ float operator()(float product) const {
    if (capped_) product = tanhf(product * inner_scale_);
    return product * outer_scale_;
  }

 private:
  bool capped_;
  float outer_scale_;  // scale * log2 e or, with a soft cap, cap * log2 e
  float inner_scale_;  // scale / cap
};

}  // namespace jax_baracuda
