// Philox4x32-7: random words from a counter and a key (J. Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011; seven rounds pass BigCrush).
#pragma once

#include <cstdint>

namespace jax_baracuda {

__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
#pragma unroll
  for (int round = 0; round < 7; ++round) {
    const uint32_t high0 = __umulhi(kMultiplier0, counter.x), low0 = kMultiplier0 * counter.x;
    const uint32_t high1 = __umulhi(kMultiplier1, counter.z), low1 = kMultiplier1 * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
    key.x += kWeyl0;
    key.y += kWeyl1;
  }
  return counter;
}

// The same for counters that differ in their second word: what depends on the others alone is found once.
class PhiloxOfSecondWord {
  uint32_t first_, second_, third_[2], fourth_[2];  // of the rounds, what is known of their results
  uint2 keys_[3];                                   // of the others

 public:
  PhiloxOfSecondWord() = default;
  __device__ __forceinline__ PhiloxOfSecondWord(uint32_t x, uint32_t z, uint32_t w, uint2 key) {
    const uint64_t of_x = multiply0(x), of_z = multiply1(z);
    first_ = high(of_z) ^ key.x;
    const uint64_t of_second = multiply1(high(of_x) ^ w ^ key.y);
    advance(key);
    second_ = low(of_x) ^ key.y;
    const uint64_t of_third = multiply0(high(of_second) ^ low(of_z) ^ key.x);
    advance(key);
    third_[0] = low(of_second) ^ key.x;
    third_[1] = high(of_third) ^ key.y;
    advance(key);
    fourth_[0] = key.x;
    fourth_[1] = low(of_third) ^ key.y;
#pragma unroll
    for (int round = 0; round < 3; ++round) {
      advance(key);
      keys_[round] = key;
    }
  }

  __device__ __forceinline__ uint4 operator()(uint32_t y) const {
    const uint64_t second = multiply0(first_ ^ y), third = multiply1(high(second) ^ second_);
    uint64_t even = multiply0(high(third) ^ third_[0]), odd = multiply1(low(second) ^ third_[1]);
    uint4 c = make_uint4(high(odd) ^ low(third) ^ fourth_[0], low(odd), high(even) ^ fourth_[1],
                         low(even));
#pragma unroll
    for (int round = 0; round < 3; ++round) {
      even = multiply0(c.x);
      odd = multiply1(c.z);
      c = make_uint4(high(odd) ^ c.y ^ keys_[round].x, low(odd), high(even) ^ c.w ^ keys_[round].y,
                     low(even));
    }
    return c;
  }

  // Keeps the compiler from finding them anew.
  __device__ __forceinline__ void hold() {
    asm volatile(""
                 : "+r"(first_), "+r"(second_), "+r"(third_[0]), "+r"(third_[1]), "+r"(fourth_[0]),
                   "+r"(fourth_[1]));
#pragma unroll
    for (int round = 0; round < 3; ++round)
      asm volatile("" : "+r"(keys_[round].x), "+r"(keys_[round].y));
  }

 private:
  static __device__ __forceinline__ uint64_t multiply0(uint32_t x) {
    return uint64_t{0xD2511F53u} * x;
  }
  static __device__ __forceinline__ uint64_t multiply1(uint32_t x) {
    return uint64_t{0xCD9E8D57u} * x;
  }
  static __device__ __forceinline__ uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }
  static __device__ __forceinline__ uint32_t high(uint64_t x) {
    return static_cast<uint32_t>(x >> 32);
  }
  static __device__ __forceinline__ void advance(uint2& key) {
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
};

}  // namespace jax_baracuda
