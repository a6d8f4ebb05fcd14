// What the int4 kernels do across the CTAs of a cluster (sm_90 and newer; never launched elsewhere).
#pragma once

#include <cstdint>

namespace jax_baracuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kHasClusters = false;
#else
inline constexpr bool kHasClusters = true;
#endif

// Arrives at the cluster's barrier; orders nothing.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
#endif
}

// The shared address of the CTA of the given rank that is `address` in this one.
__device__ __forceinline__ uint32_t remote_address(uint32_t address, int rank) {
  uint32_t remote = address;
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(remote) : "r"(address), "r"(rank));
#endif
  return remote;
}

// Writes to another CTA's shared memory; its barrier there counts the 16 bytes.
__device__ __forceinline__ void store_remote(uint32_t address, float4 v, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];\n" ::"r"(address),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
      : "memory");
#endif
}

// Starts to copy a box from shared memory to (column, row) of a map of four dimensions; part of this thread's current group.
__device__ __forceinline__ void tma_store(const void* map, uint32_t shared, int column, int row) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %4}], [%1];\n" ::"l"(
          map),
      "r"(shared), "r"(column), "r"(row), "r"(0)
      : "memory");
#endif
}

}  // namespace jax_baracuda
