// From merged statistics to the output's normalisation and the LSE, learnable sinks included.
#pragma once

#include "decode/params.h"
#include "device/math.cuh"

namespace jax_baracuda {

struct Normalised {
  float factor;  // what the accumulated output is multiplied by
  float lse;     // natural log
};

// `maximum` and `sum` are base 2. A row that sees no key gives 0 and -inf, sink or not.
__device__ __forceinline__ Normalised normalise(const DecodeParams& p, float maximum, float sum,
                                                int b, int query_head) {
  if (maximum == negative_infinity()) return {0.0f, negative_infinity()};
  float factor = 1.0f;
  if (p.sinks != nullptr) {
    const float sink = p.sinks[b * p.sinks_batch_stride + query_head] * kLog2E;
    const float highest = fmaxf(maximum, sink);
    factor = exp2f(maximum - highest);
    sum = sum * factor + exp2f(sink - highest);
    maximum = highest;
  }
  return {__fdividef(factor, sum), (maximum + log2f(sum)) * kLn2};
}

}  // namespace jax_baracuda
