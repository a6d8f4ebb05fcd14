// Thread block clusters and their distributed shared memory (sm_90 and newer; never launched elsewhere).
#pragma once

#include <cstdint>

namespace jax_baracuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Of this CTA in its cluster.
__device__ __forceinline__ int cluster_rank() {
  int rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
#endif
  return rank;
}
// The integer at the same shared address in the CTA of the given rank.
__device__ __forceinline__ int load_remote_int(uint32_t address, int rank) {
  int value = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %1, %2;\n"
      " ld.shared::cluster.b32 %0, [remote];\n}\n"
      : "=r"(value)
      : "r"(address), "r"(rank));
#endif
  return value;
}

// A barrier of all threads of the cluster, with its memory visible to all.
__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;\n" ::
          : "memory");
#endif
}

// The float at the same shared address in the CTA of the given rank.
__device__ __forceinline__ float load_remote(uint32_t address, int rank) {
  float value = 0.0f;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %1, %2;\n"
      " ld.shared::cluster.f32 %0, [remote];\n}\n"
      : "=f"(value)
      : "r"(address), "r"(rank));
#endif
  return value;
}

}  // namespace jax_baracuda
