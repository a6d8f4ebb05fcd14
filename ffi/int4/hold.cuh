// Keeps the compiler from working ahead, where what follows from a value is to be worked out when it is used, and from working
// a value out again.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace jax_baracuda {

__device__ __forceinline__ void hold(uint4& words) {
  asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w)::"memory");
}

__device__ __forceinline__ void keep(uint32_t& value) { asm volatile("" : "+r"(value)); }

__device__ __forceinline__ void hold(uint64_t& descriptor) { asm volatile("" : "+l"(descriptor)); }

}  // namespace jax_baracuda
