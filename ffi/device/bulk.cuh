// Contiguous bytes between global and shared memory by the copy engine, and 8 x 8 blocks from registers to shared
// memory (sm_90 and newer). Addresses and sizes are multiples of 16 bytes.
#pragma once

#include <cstdint>

namespace jax_baracuda {

// Starts to copy; the bytes are counted at `barrier`.
__device__ __forceinline__ void bulk_load(uint32_t shared, const void* global, int bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

// The hint of what is read once: it is the first to leave the L2 cache.
__device__ __forceinline__ uint64_t evict_first_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
  return policy;
}

// The same with a hint to the L2 cache.
__device__ __forceinline__ void bulk_load(uint32_t shared, const void* global, int bytes,
                                          uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;\n" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// Starts to copy from this CTA's shared memory to the same address in the CTA of the given rank, whose barrier at
// `barrier` counts the bytes.
__device__ __forceinline__ void bulk_copy_to_cta(uint32_t shared, int bytes, uint32_t barrier,
                                                 int rank) {
  asm volatile(
      "{\n .reg .b32 to, at;\n mapa.shared::cluster.u32 to, %0, %3;\n"
      " mapa.shared::cluster.u32 at, %2, %3;\n"
      " cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [to], [%0], %1, "
      "[at];\n}\n" ::"r"(shared),
      "r"(bytes), "r"(barrier), "r"(rank)
      : "memory");
}

// Starts to add floats to those in global memory; part of this thread's current group.
__device__ __forceinline__ void bulk_add(float* global, uint32_t shared, int bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\n" ::"l"(global),
      "r"(shared), "r"(bytes)
      : "memory");
}
// Starts to copy to global memory; part of this thread's current group.
__device__ __forceinline__ void bulk_store(void* global, uint32_t shared, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n" ::"l"(global),
               "r"(shared), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}
// Waits until shared memory has been read by all of this thread's groups.
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;\n" ::: "memory");
}
// The same, but for the last kGroups of them.
template <int kGroups>
__device__ __forceinline__ void bulk_wait_read_but() {
  asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(kGroups) : "memory");
}
// Waits until all of this thread's groups have ended.
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group 0;\n" ::: "memory");
}

// Orders this thread's ordinary accesses, to global memory too, with those of the copy engine.
__device__ __forceinline__ void fence_async_all() {
  asm volatile("fence.proxy.async;\n" ::: "memory");
}

// Writes four 8 x 8 blocks of 16-bit elements, transposed: lane 8b + r has the address of row r of what block b
// becomes, 16 bytes. Lanes hold the blocks as mma.sync does.
__device__ __forceinline__ void store_matrices_transposed(uint32_t row, const uint32_t (&r)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(row),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}

// The same, not transposed.
__device__ __forceinline__ void store_matrices(uint32_t row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(row),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

}  // namespace jax_baracuda
