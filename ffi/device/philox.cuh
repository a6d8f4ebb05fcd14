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

}  // namespace jax_baracuda
