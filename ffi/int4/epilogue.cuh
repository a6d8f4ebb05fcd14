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

// Two neighbouring channels of the output, the first an even one, of which a thread has several rows.
template <class T>
struct ChannelPair {
  T* const out;  // the first row
  const int channels, rows;
  const bool both, whole;  // whether the second channel is there; pairs are aligned
  float2 bias = {};

  // No rows where the channels are not there.
  __device__ __forceinline__ ChannelPair(const Int4Params& p, int channel)
      : out(static_cast<T*>(p.out) + channel),
        channels(p.channels),
        rows(channel < p.channels ? p.rows : 0),
        both(channel + 1 < p.channels),
        whole(p.channels % 2 == 0) {
    if (!p.bias || channel >= p.channels) return;
    const T* from = static_cast<const T*>(p.bias) + channel;
    bias = make_float2(from[0], both ? static_cast<float>(from[1]) : 0.0f);
  }

  __device__ __forceinline__ void store(int row, float first, float second) const {
    if (row >= rows) return;
    T* to = out + static_cast<int64_t>(row) * channels;
    const uint32_t pair = pack_floats<T>(first + bias.x, second + bias.y);
    if (whole) {
      *reinterpret_cast<uint32_t*>(to) = pair;
    } else {
      reinterpret_cast<uint16_t*>(to)[0] = static_cast<uint16_t>(pair);
      if (both) reinterpret_cast<uint16_t*>(to)[1] = static_cast<uint16_t>(pair >> 16);
    }
  }
  // A quad: two rows.
  __device__ __forceinline__ void store(int row, float4 sum) const {
    store(row, sum.x, sum.z);
    store(row + 1, sum.y, sum.w);
  }
};

// Two rows by two channels of the sums of a split.
__device__ __forceinline__ void store_part(const Int4Params& p, int split, int row, int channel,
                                           float4 sum) {
  const int width = p.strips * kStrip;
  if (channel >= width) return;
  float* to = p.partials + (static_cast<int64_t>(split) * p.rows + row) * width + channel;
  if (row < p.rows) *reinterpret_cast<float2*>(to) = make_float2(sum.x, sum.z);
  if (row + 1 < p.rows) *reinterpret_cast<float2*>(to + width) = make_float2(sum.y, sum.w);
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
