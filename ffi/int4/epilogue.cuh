// From float32 sums to the output.
#pragma once

#include "device/math.cuh"
#include "device/memory.cuh"
#include "device/mma.cuh"
#include "int4/params.h"

namespace jax_baracuda {

__device__ __forceinline__ float4 load_shared_float4(uint32_t shared) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];\n"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(shared)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_shared_float4(uint32_t shared, float4 v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"r"(shared), "f"(v.x), "f"(v.y),
               "f"(v.z), "f"(v.w)
               : "memory");
}

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// Four neighbouring channels of a row of the output, the first a multiple of four.
template <class T>
__device__ __forceinline__ void store_output(const Int4Params& p, int row, int channel,
                                             float4 sum) {
  if (channel >= p.channels) return;
  T* out = static_cast<T*>(p.out) + static_cast<int64_t>(row) * p.channels + channel;
  const T* bias = static_cast<const T*>(p.bias) + channel;
  const float sums[4] = {sum.x, sum.y, sum.z, sum.w};
  T rounded[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool biased = p.bias && channel + i < p.channels;
    rounded[i] = from_float<T>(sums[i] + (biased ? static_cast<float>(bias[i]) : 0.0f));
  }
  if (p.channels % 4 == 0) {
    store_vector(out, rounded);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (channel + i < p.channels) out[i] = rounded[i];
  }
}

// Two neighbouring channels of a row of the output, the first an even one.
template <class T>
__device__ __forceinline__ void store_output(const Int4Params& p, int row, int channel, float first,
                                             float second) {
  if (channel >= p.channels) return;
  T* out = static_cast<T*>(p.out) + static_cast<int64_t>(row) * p.channels + channel;
  const bool both = channel + 1 < p.channels;
  if (p.bias) {
    const T* bias = static_cast<const T*>(p.bias) + channel;
    first += static_cast<float>(bias[0]);
    if (both) second += static_cast<float>(bias[1]);
  }
  if (p.channels % 2 == 0) {
    *reinterpret_cast<uint32_t*>(out) = pack_floats<T>(first, second);
  } else {
    out[0] = from_float<T>(first);
    if (both) out[1] = from_float<T>(second);
  }
}

// Four channels, or those to the partial sums of a split if there are any.
template <class T>
__device__ __forceinline__ void store_sum(const Int4Params& p, int split, int row, int channel,
                                          float4 sum) {
  const int width = p.strips * kStrip;
  if (!p.partials) {
    store_output<T>(p, row, channel, sum);
  } else if (channel < width) {
    const int64_t at = (static_cast<int64_t>(split) * p.rows + row) * width + channel;
    *reinterpret_cast<float4*>(p.partials + at) = sum;
  }
}

}  // namespace jax_baracuda
