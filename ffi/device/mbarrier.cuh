// Barriers in shared memory that count arrivals and bytes of bulk copies (sm_90 and newer).
//
// A barrier completes a phase when all its arrivals and all bytes it was told to expect have come. Waiting names the
// parity of the phase, 0 for the first; the phase "before the first" counts as complete, which is what the
// producer of an empty pipeline waits for (parity 1).
#pragma once

#include <cstdint>

namespace jax_baracuda {

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals)
               : "memory");
}

// Makes initialised barriers visible to the copy engine; a __syncthreads() makes them so to the threads.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// The same where `valid` is true, without a branch.
__device__ __forceinline__ void mbarrier_arrive_if(uint32_t barrier, bool valid) {
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %1, 0;\n @p mbarrier.arrive.shared::cta.b64 _, "
      "[%0];\n}\n" ::"r"(barrier),
      "r"(static_cast<int>(valid))
      : "memory");
}

// Builds for compute-sanitizer's racecheck (docs/racecheck.md): it takes an arrival for that of the one lane, not of the warp that
// has converged before, and __syncthreads() for none where warps have passed named barriers unequally often.
#ifdef JAX_BARACUDA_RACECHECK
inline constexpr bool kRacecheck = true;
#else
inline constexpr bool kRacecheck = false;
#endif
inline constexpr int kWarpArrivals = kRacecheck ? 32 : 1;

// A warp's arrival: so many, all of one warp.
__device__ __forceinline__ void mbarrier_arrive_warp(uint32_t barrier) {
  if (threadIdx.x % 32 < kWarpArrivals) mbarrier_arrive(barrier);
}

// Arrives at the barrier that lies at the same shared address in the CTA of the given rank of the cluster. It says
// that buffers have been read, and makes no writes visible there.
__device__ __forceinline__ void mbarrier_arrive_at(uint32_t barrier, int rank) {
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %0, %1;\n"
      " mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Arrives, and adds to the bytes that this phase waits for.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ bool mbarrier_try_wait(uint32_t barrier, int parity) {
  uint32_t done;
  asm volatile(
      "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      " selp.b32 %0, 1, 0, p;\n}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, int parity) {
#ifdef JAX_BARACUDA_WATCHDOG  // debug builds: a pipeline that has lost step traps and does not hang
  if (mbarrier_try_wait(barrier, parity)) return;
  for (const long long start = clock64(); !mbarrier_try_wait(barrier, parity);)
    if (clock64() - start > (1ll << 31)) __trap();
#else
  while (!mbarrier_try_wait(barrier, parity)) {
  }
#endif
}

// Named barriers (ids 1 to 15) among `threads` threads, whole warps: those that wait and those that only arrive.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace jax_baracuda
