// Bulk copies of contiguous bytes from global to shared memory (sm_90 and newer).
#pragma once

#include <cstdint>

namespace jax_baracuda {

// Starts to copy `bytes`, a multiple of 16, between addresses that are multiples of 16. They are counted at `barrier`.
__device__ __forceinline__ void bulk_load(uint32_t shared, const void* global, int bytes,
                                          uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;\n" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

}  // namespace jax_baracuda
