// The tensor memory accelerator: boxes of a tensor in global memory to shared memory (sm_90 and newer).
#pragma once

#include <cstdint>

namespace jax_baracuda {

// What the L2 cache does with the lines that a copy touches.
inline constexpr uint64_t kEvictNormal = 0x1000000000000000;
inline constexpr uint64_t kEvictFirst = 0x12f0000000000000;
inline constexpr uint64_t kEvictLast = 0x14f0000000000000;

__device__ __forceinline__ void tma_prefetch_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

// Starts to copy the box at (column, row, head, pack) of a map of four dimensions; elements outside of the tensor
// become zeros. All bytes of the box are counted at `barrier`.
__device__ __forceinline__ void tma_load(uint32_t shared, const void* map, uint32_t barrier,
                                         int column, int row, int head, int pack, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;\n" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "r"(head), "r"(pack), "l"(policy)
      : "memory");
}

// The same to all CTAs of the cluster whose bits are set, each at the same shared address and barrier.
__device__ __forceinline__ void tma_load_multicast(uint32_t shared, const void* map,
                                                   uint32_t barrier, int column, int row, int head,
                                                   int pack, uint16_t ctas, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7, %8;\n" ::"r"(
          shared),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "r"(head), "r"(pack), "h"(ctas), "l"(policy)
      : "memory");
}

// Starts to copy a box from shared memory to its place; elements outside of the tensor are left out. Part of this thread's
// current group (bulk.cuh).
__device__ __forceinline__ void tma_store(const void* map, uint32_t shared, int column, int row,
                                          int head, int pack) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];\n" ::"l"(
          map),
      "r"(shared), "r"(column), "r"(row), "r"(head), "r"(pack)
      : "memory");
}

// Orders this thread's ordinary accesses to shared memory before those of the copy engine and of wgmma.
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

}  // namespace jax_baracuda
