// Thread block clusters and their distributed shared memory (sm_90 and newer; never launched elsewhere).
#pragma once

#include <cstdint>

namespace jax_baracuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The two halves of a barrier of all threads of the cluster, with its memory visible to all.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
// To arrive with nothing to show the others: that this CTA has begun, and its shared memory is there.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n" ::: "memory");
#endif
}

// Writes to the same shared address in the CTA of the given rank.
__device__ __forceinline__ void store_remote(uint32_t address, int rank, float4 v) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %0, %1;\n"
      " st.shared::cluster.v4.f32 [remote], {%2, %3, %4, %5};\n}\n" ::"r"(address),
      "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
      : "memory");
#endif
}
__device__ __forceinline__ void store_remote(uint32_t address, int rank, float2 v) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %0, %1;\n"
      " st.shared::cluster.v2.f32 [remote], {%2, %3};\n}\n" ::"r"(address),
      "r"(rank), "f"(v.x), "f"(v.y)
      : "memory");
#endif
}

}  // namespace jax_baracuda
