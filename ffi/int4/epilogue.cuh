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

// The bias of two neighbouring channels, the first an even one; zeros where there is none.
template <class T>
__device__ __forceinline__ float2 bias_pair(const Int4Params& p, int channel) {
  if (!p.bias || channel >= p.channels) return make_float2(0.0f, 0.0f);
  const T* from = static_cast<const T*>(p.bias) + channel;
  return make_float2(from[0], channel + 1 < p.channels ? static_cast<float>(from[1]) : 0.0f);
}

// Where a thread's sums of two neighbouring channels go, the first an even one: to the output, or to the sums of a split in the
// workspace. They come in quads, two rows each, of which the next one is eight rows further on. All that does
// not depend on the quad is worked out once.
template <class T>
class ChannelPair {
 public:
  // `row`: the first one of quad 0.
  __device__ __forceinline__ ChannelPair(const Int4Params& p, int channel, int row, bool parts,
                                         int split)
      : parts(parts),
        second(channel + 1 < p.channels),
        aligned(p.channels % 2 == 0),
        octets(!parts && p.channels % 8 == 0) {
    const int width = parts ? p.strips * kStrip : p.channels, bytes = parts ? 4 : 2;
    const int64_t first = row + (parts ? static_cast<int64_t>(split) * p.rows : 0);
    rows = channel < width ? p.rows - row : 0;
    row_bytes = width * bytes;
    to = (parts ? reinterpret_cast<char*>(p.partials) : static_cast<char*>(p.out)) +
         first * row_bytes + channel * bytes;
    bias = parts ? make_float2(0.0f, 0.0f) : bias_pair<T>(p, channel);
  }

  __device__ __forceinline__ void store(int quad, float4 sum) const {
    const uint32_t row = quad * 8;
    if (static_cast<int>(row) >= rows) return;
    char* const at = to + static_cast<uint64_t>(row) * row_bytes;
    store_row(at, sum.x + bias.x, sum.z + bias.y);
    if (static_cast<int>(row) + 1 < rows) store_row(at + row_bytes, sum.y + bias.x, sum.w + bias.y);
  }

  // Quads first + i * step of a warp, in which four lanes (numbers 4 and 8 apart) have eight neighbouring channels: each of
  // them stores a quad's. Only where octets.
  __device__ __forceinline__ void store_four(int first, int step, const float4* sums) const {
    uint32_t even[4], odd[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      even[i] = pack_floats<T>(sums[i].x + bias.x, sums[i].z + bias.y);
      odd[i] = pack_floats<T>(sums[i].y + bias.x, sums[i].w + bias.y);
    }
    const int i = threadIdx.x / 4 % 4;
    transpose(even, i);
    transpose(odd, i);
    const uint32_t row = (first + i * step) * 8;
    if (static_cast<int>(row) >= rows) return;
    char* const at = to - i * 4 + static_cast<uint64_t>(row) * row_bytes;
    *reinterpret_cast<uint4*>(at) = make_uint4(even[0], even[1], even[2], even[3]);
    if (static_cast<int>(row) + 1 < rows)
      *reinterpret_cast<uint4*>(at + row_bytes) = make_uint4(odd[0], odd[1], odd[2], odd[3]);
  }

  const bool octets;  // whether rows of the output are multiples of 16 bytes

 private:
  char* to;
  uint32_t row_bytes;
  int rows;  // from that of quad 0 on; none where the channels are not there
  float2 bias;
  const bool parts, second, aligned;  // whether the second channel is there; pairs are aligned

  // Word j of lane i of four becomes word i of lane j.
  static __device__ __forceinline__ void transpose(uint32_t (&w)[4], int i) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (j & bit) continue;
        const uint32_t give = i & bit ? w[j] : w[j + bit];
        const uint32_t get = __shfl_xor_sync(0xffffffffu, give, 4 * bit);
        w[j] = i & bit ? get : w[j];
        w[j + bit] = i & bit ? w[j + bit] : get;
      }
  }

  __device__ __forceinline__ void store_row(char* at, float a, float b) const {
    if (parts) {
      *reinterpret_cast<float2*>(at) = make_float2(a, b);
      return;
    }
    const uint32_t pair = pack_floats<T>(a, b);
    if (aligned) {
      *reinterpret_cast<uint32_t*>(at) = pair;
    } else {
      reinterpret_cast<uint16_t*>(at)[0] = static_cast<uint16_t>(pair);
      if (second) reinterpret_cast<uint16_t*>(at)[1] = static_cast<uint16_t>(pair >> 16);
    }
  }
};

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
