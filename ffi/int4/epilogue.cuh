// From float32 sums to the output.
#pragma once

#include "device/math.cuh"
#include "device/memory.cuh"
#include "device/mma.cuh"
#include "int4/params.h"

namespace jax_baracuda {

// Two neighbouring channels of a row of the output, the first of them even.
template <class T>
__device__ __forceinline__ void store_output(const Int4Params& p, int row, int channel,
                                             float2 sum) {
  if (channel >= p.channels) return;
  T* out = static_cast<T*>(p.out) + static_cast<int64_t>(row) * p.channels + channel;
  const T* bias = static_cast<const T*>(p.bias);
  const bool both = channel + 1 < p.channels;
  if (bias) {
    sum.x += static_cast<float>(bias[channel]);
    if (both) sum.y += static_cast<float>(bias[channel + 1]);
  }
  if (p.channels % 2 == 0) {
    *reinterpret_cast<uint32_t*>(out) = pack_floats<T>(sum.x, sum.y);
  } else {
    out[0] = from_float<T>(sum.x);
    if (both) out[1] = from_float<T>(sum.y);
  }
}

}  // namespace jax_baracuda
