// Nibbles to A operands of matrix products, words as int4/params.h describes them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace jax_baracuda {

// (a & mask) | bits
template <uint32_t kMask, uint32_t kBits>
__device__ __forceinline__ uint32_t mask_or(uint32_t a) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;\n" : "=r"(d) : "r"(a), "n"(kMask), "n"(kBits));
  return d;
}

__device__ __forceinline__ uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;\n" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ __forceinline__ uint32_t add_f16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("add.rn.f16x2 %0, %1, %2;\n" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// The cheapest numbers that the bits of a nibble are. The zero points go against the sum of x over a group, in float32:
//   sum x w = factor * scale * (sum x number - shift * sum x)    with a lane's two channels' own shift and factor.
// f16 takes the bits as they are, subnormals. Even registers (row g, its first channel) have a whole byte, both channels'
// nibbles q + 16 q', which saves a mask or shift each; odd ones (row g + 8) have 16 q', which first() takes off again.
// Products of bf16's subnormals vanish in float32. So its even registers have the nibble under the exponent of 128, as
// 128 + q, and its odd ones 16 q 2^-133 times 2^127, which is q / 4: the multiplication runs beside the integer pipe.
template <class T>
struct RawNibbles;

template <>
struct RawNibbles<__half> {
  static constexpr uint32_t kOnes = 0x3c003c00;
  static constexpr float kFirstFactor = 16777216.0f, kSecondFactor = 1048576.0f;

  static __device__ __forceinline__ void run(uint32_t (&a)[4], uint32_t word) {
    a[0] = word & 0x00ff00ff;
    a[1] = word & 0x00f000f0;
    a[2] = __byte_perm(word, 0, 0x4341);  // word >> 8 & 0x00ff00ff
    a[3] = a[2] & 0x00f000f0;
  }
  // The first channel's products, from those of both rows.
  static __device__ __forceinline__ float first(float even, float odd) { return even - odd; }
  // From the zero points in the low bytes: a byte is a subnormal, too.
  static __device__ __forceinline__ float2 shifts(uint32_t zeros) {
    const uint32_t halves = __byte_perm(zeros, 0, 0x4140);
    const float2 shift = __half22float2(*reinterpret_cast<const __half2*>(&halves));
    return make_float2(shift.x, 16.0f * shift.y);
  }
  static __device__ __forceinline__ float2 to_floats(uint32_t pair) {
    return __half22float2(*reinterpret_cast<__half2*>(&pair));
  }
};

template <>
struct RawNibbles<__nv_bfloat16> {
  static constexpr uint32_t kOnes = 0x3f803f80;
  static constexpr float kFirstFactor = 1.0f, kSecondFactor = 4.0f;

  static __device__ __forceinline__ void run(uint32_t (&a)[4], uint32_t word) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      a[2 * half] = mask_or<0x000f000f, 0x43004300>(word);
      a[2 * half + 1] = fma_bf16x2(word & 0x00f000f0, 0x7f007f00, 0x80008000);
      word >>= 8;
    }
  }
  static __device__ __forceinline__ float first(float even, float) { return even; }
  static __device__ __forceinline__ float2 shifts(uint32_t zeros) {
    return make_float2(__uint_as_float(__byte_perm(zeros, 0x4300, 0x5066)),
                       fmaf(__uint_as_float(__byte_perm(zeros, 0x4300, 0x5166)), 0.25f, -32.0f));
  }
  static __device__ __forceinline__ float2 to_floats(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000));
  }
};

// q - zero exactly, in the cheapest way, for sums of a group that are scaled in float32 afterwards and need no sum of x.
// Zero points z and z' of the lane's two channels are at most 16, as all formats have them.
// f16: bytes as subnormals again. Even registers have (q - z) + 16 (q' - z'), odd ones 16 (q' - z').
// bf16: even registers have q - z, odd ones (q' - z') / 4.
template <class T>
struct ByteNibbles;

template <>
struct ByteNibbles<__half> {
  static constexpr float kFirstFactor = 16777216.0f, kSecondFactor = 1048576.0f;
  uint32_t offset[2];

  // Zero points in the low bytes.
  __device__ __forceinline__ explicit ByteNibbles(uint32_t zeros) {
    offset[1] = (__byte_perm(zeros, 0, 0x4141) << 4) + 0x80008000u;
    offset[0] = __byte_perm(zeros, 0, 0x4040) + offset[1];
  }
  __device__ __forceinline__ void run(uint32_t (&a)[4], uint32_t word) const {
    const uint32_t high = __byte_perm(word, 0, 0x4341);  // word >> 8 & 0x00ff00ff
    a[0] = add_f16x2(word & 0x00ff00ff, offset[0]);
    a[1] = add_f16x2(word & 0x00f000f0, offset[1]);
    a[2] = add_f16x2(high, offset[0]);
    a[3] = add_f16x2(high & 0x00f000f0, offset[1]);
  }
  // The first channel's products, from those of both rows.
  static __device__ __forceinline__ float first(float even, float odd) { return even - odd; }
};

template <>
struct ByteNibbles<__nv_bfloat16> {
  static constexpr float kFirstFactor = 1.0f, kSecondFactor = 4.0f;
  uint32_t offset[2];

  __device__ __forceinline__ explicit ByteNibbles(uint32_t zeros) {
    offset[0] = __byte_perm(zeros, 0xc3, 0x4040);  // -(128 + z)
    const uint32_t second = __byte_perm(zeros, 0xc3, 0x4141);
    offset[1] = fma_bf16x2(second, 0x3e803e80, 0x42004200);  // 32 - (128 + z') / 4
  }
  __device__ __forceinline__ void run(uint32_t (&a)[4], uint32_t word) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      a[2 * half] = fma_bf16x2(mask_or<0x000f000f, 0x43004300>(word), 0x3f803f80, offset[0]);
      a[2 * half + 1] = fma_bf16x2(word & 0x00f000f0, 0x7f007f00, offset[1]);
      word >>= 8;
    }
  }
  static __device__ __forceinline__ float first(float even, float) { return even; }
};

// q - zero, exactly, for weights that are scaled. second_scale(): what to multiply the second channel's with, of its scale.
template <class T>
struct ExactNibbles;

// A nibble under the exponent of 2^10 is 1024 + q; subtracting 1024 + zero leaves no rounding.
template <>
struct ExactNibbles<__half> {
  uint32_t offset[2];  // of the lane's two channels, twice

  // Zero points in the low bytes.
  __device__ __forceinline__ explicit ExactNibbles(uint32_t zeros) {
    offset[0] = __byte_perm(zeros, 0xe4, 0x4040);  // -(1024 + zero)
    const uint32_t second = __byte_perm(zeros, 0x64, 0x4141);
    offset[1] = fma_f16x2(second, 0xbc00bc00, 0x63806380);  // 960 - (1024 + zero)
  }
  __device__ __forceinline__ void run(uint32_t (&a)[4], uint32_t word) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t even = mask_or<0x000f000f, 0x64006400>(word);
      const uint32_t odd = mask_or<0x00f000f0, 0x64006400>(word);  // 1024 + 16 q
      a[2 * half] = fma_f16x2(even, 0x3c003c00, offset[0]);
      a[2 * half + 1] = fma_f16x2(odd, 0x2c002c00, offset[1]);  // 1 / 16
      word >>= 8;
    }
  }
  static __device__ __forceinline__ uint32_t second_scale(uint32_t scale) { return scale; }
  static __device__ __forceinline__ uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("mul.f16x2 %0, %1, %2;\n" : "=r"(d) : "r"(a), "r"(b));
    return d;
  }
};

// The second channel has a quarter, which saves two shifts a word.
template <>
struct ExactNibbles<__nv_bfloat16> : ByteNibbles<__nv_bfloat16> {
  using ByteNibbles<__nv_bfloat16>::ByteNibbles;
  static __device__ __forceinline__ uint32_t second_scale(uint32_t scale) {
    return multiply(scale, 0x40804080);  // 4
  }
  static __device__ __forceinline__ uint32_t multiply(uint32_t a, uint32_t b) {
    return fma_bf16x2(a, b, 0x80008000);
  }
};

// (q - zero) * scale, rounded once.
template <class T>
struct ScaledNibbles {
  using Exact = ExactNibbles<T>;
  Exact exact;
  uint32_t scale[2];

  // Zero points in the low bytes; a pair of scales.
  __device__ __forceinline__ ScaledNibbles(uint32_t zeros, uint32_t scales) : exact(zeros) {
    scale[0] = __byte_perm(scales, 0, 0x1010);
    scale[1] = Exact::second_scale(__byte_perm(scales, 0, 0x3232));
  }
  __device__ __forceinline__ void run(uint32_t (&a)[4], uint32_t word) const {
    exact.run(a, word);
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = exact.multiply(a[i], scale[i % 2]);
  }
};

// What scales the sums of a group: quads of the lane's two channels by two rows of x, the first channel first. Numbers are those
// of RawNibbles or ByteNibbles.
template <class T>
struct GroupScale {
  using Raw = RawNibbles<T>;
  float2 factor;

  __device__ __forceinline__ explicit GroupScale(uint32_t scales)
      : factor(Raw::to_floats(scales)) {}
  template <int kCount>
  __device__ __forceinline__ void add(float (&sums)[kCount], const float (&group)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; i += 4)
#pragma unroll
      for (int row = i; row < i + 2; ++row) {
        const float first = Raw::first(group[row], group[row + 2]);
        sums[row] = fmaf(first, factor.x, sums[row]);
        sums[row + 2] = fmaf(group[row + 2], factor.y, sums[row + 2]);
      }
  }
  // Once, after the last group.
  template <int kCount>
  static __device__ __forceinline__ void finish(float (&sums)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] *= i % 4 < 2 ? Raw::kFirstFactor : Raw::kSecondFactor;
  }
};

// q - zero, whose sums of a group are scaled. Zero points in the low bytes; a pair of scales.
template <class T>
struct GroupNibbles : GroupScale<T> {
  ByteNibbles<T> exact;

  __device__ __forceinline__ GroupNibbles(uint32_t zeros, uint32_t scales)
      : GroupScale<T>(scales), exact(zeros) {}
  __device__ __forceinline__ void run(uint32_t (&a)[4], uint32_t word) const { exact.run(a, word); }
};

// The two below leave out a part of the zero points, for which a multiple of the sum of x over the group is to be subtracted:
// excess() says how much of it for the lane's two channels, in units of the sums.

// Numbers as their bits are, whose sums of a group are scaled.
template <class T>
struct RawGroupNibbles : GroupScale<T> {
  using Raw = RawNibbles<T>;

  __device__ __forceinline__ RawGroupNibbles(uint32_t, uint32_t scales) : GroupScale<T>(scales) {}
  __device__ __forceinline__ void run(uint32_t (&a)[4], uint32_t word) const { Raw::run(a, word); }
  static __device__ __forceinline__ float2 excess(uint32_t zeros, uint32_t scales) {
    const float2 shift = Raw::shifts(zeros), factor = Raw::to_floats(scales);
    return make_float2(shift.x * factor.x, shift.y * factor.y);
  }
};

// (q - zero) * scale by one operation a register: a nibble under an exponent, times the scale, less the zero point under the
// same exponent times the scale. That one is rounded, by a part of the scale, which is the excess.
template <class T>
struct OffsetNibbles;

template <>
struct OffsetNibbles<__half> {
  static constexpr float kSecondFactor = 1.0f;
  uint32_t scale[2], offset[2];  // of the lane's two channels, twice

  __device__ __forceinline__ OffsetNibbles(uint32_t zeros, uint32_t scales) {
    scale[0] = __byte_perm(scales, 0, 0x1010);
    scale[1] = __byte_perm(scales, 0, 0x3232);
    const uint32_t second = (__byte_perm(zeros, 0, 0x4141) << 4) + 0xd400d400u;
    offset[0] = fma_f16x2(__byte_perm(zeros, 0xe4, 0x4040), scale[0], 0x80008000);
    offset[1] = fma_f16x2(second, scale[1], 0x80008000);
  }
  __device__ __forceinline__ void run(uint32_t (&a)[4], uint32_t word) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // 1024 + q and 64 + q
      a[2 * half] = fma_f16x2(mask_or<0x000f000f, 0x64006400>(word), scale[0], offset[0]);
      a[2 * half + 1] = fma_f16x2(mask_or<0x00f000f0, 0x54005400>(word), scale[1], offset[1]);
      word >>= 8;
    }
  }
  static __device__ __forceinline__ float2 excess(uint32_t zeros, uint32_t scales) {
    const OffsetNibbles n(zeros, scales);
    const float2 scale = RawNibbles<__half>::to_floats(scales);
    const float2 offset =
        RawNibbles<__half>::to_floats(__byte_perm(n.offset[0], n.offset[1], 0x5410));
    return make_float2(fmaf(1024.0f + (zeros & 0xff), scale.x, offset.x),
                       fmaf(64.0f + (zeros >> 8), scale.y, offset.y));
  }
};

// Odd registers have 16 q 2^-133, and meet 2^120 times the scale.
template <>
struct OffsetNibbles<__nv_bfloat16> {
  static constexpr float kSecondFactor = 512.0f;
  uint32_t scale[2], offset[2];

  __device__ __forceinline__ OffsetNibbles(uint32_t zeros, uint32_t scales) {
    scale[0] = __byte_perm(scales, 0, 0x1010);
    scale[1] = fma_bf16x2(__byte_perm(scales, 0, 0x3232), 0x7b807b80, 0x80008000);
    const uint32_t second = (__byte_perm(zeros, 0, 0x4141) << 4) + 0x80008000u;
    offset[0] = fma_bf16x2(__byte_perm(zeros, 0xc3, 0x4040), scale[0], 0x80008000);
    offset[1] = fma_bf16x2(second, scale[1], 0x80008000);
  }
  __device__ __forceinline__ void run(uint32_t (&a)[4], uint32_t word) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      a[2 * half] = fma_bf16x2(mask_or<0x000f000f, 0x43004300>(word), scale[0], offset[0]);
      a[2 * half + 1] = fma_bf16x2(word & 0x00f000f0, scale[1], offset[1]);
      word >>= 8;
    }
  }
  static __device__ __forceinline__ float2 excess(uint32_t zeros, uint32_t scales) {
    using Raw = RawNibbles<__nv_bfloat16>;
    const OffsetNibbles n(zeros, scales);
    const float2 scale = Raw::to_floats(scales);
    const float2 offset = Raw::to_floats(__byte_perm(n.offset[0], n.offset[1], 0x5410));
    return make_float2(fmaf(128.0f + (zeros & 0xff), scale.x, offset.x),
                       fmaf((zeros >> 8) * (1.0f / 512.0f), scale.y, offset.y));
  }
};

// As it stands, and what its sums are multiplied with in the end.
template <class T>
struct OffsetScale : OffsetNibbles<T> {
  using OffsetNibbles<T>::OffsetNibbles;
  template <int kCount>
  static __device__ __forceinline__ void finish(float (&sums)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (i % 4 >= 2) sums[i] *= OffsetNibbles<T>::kSecondFactor;
  }
};

}  // namespace jax_baracuda
