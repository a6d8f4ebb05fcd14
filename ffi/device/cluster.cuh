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

// Tells the cluster that this CTA has begun and that its barriers are initialised; orders nothing else.
__device__ __forceinline__ void announce_to_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n" ::: "memory");
#endif
}
// Waits until all of it have: their shared memory may be written from then on.
__device__ __forceinline__ void await_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
#endif
}

// Starts to write to the same shared address in the CTA of the given rank, whose barrier counts the 16 or 8 bytes.
__device__ __forceinline__ void send_remote(uint32_t address, float4 v, uint32_t barrier,
                                            int rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n .reg .b32 to, counts;\n"
      " mapa.shared::cluster.u32 to, %0, %6;\n mapa.shared::cluster.u32 counts, %5, %6;\n"
      " st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [to], {%1, %2, %3, %4}, "
      "[counts];\n}\n" ::"r"(address),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier), "r"(rank)
      : "memory");
#endif
}
__device__ __forceinline__ void send_remote(uint32_t address, float2 v, uint32_t barrier,
                                            int rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n .reg .b32 to, counts;\n"
      " mapa.shared::cluster.u32 to, %0, %4;\n mapa.shared::cluster.u32 counts, %3, %4;\n"
      " st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [to], {%1, %2}, "
      "[counts];\n}\n" ::"r"(address),
      "f"(v.x), "f"(v.y), "r"(barrier), "r"(rank)
      : "memory");
#endif
}

}  // namespace jax_baracuda
