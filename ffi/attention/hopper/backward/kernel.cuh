// The Hopper backward kernel: one CTA an SM, a warp that loads and two or three warpgroups that compute (FlashAttention-3,
// Shah et al., 2024, arXiv:2407.08608).
#pragma once

#include "attention/hopper/backward/consumer.cuh"
#include "attention/hopper/backward/producer.cuh"
#include "attention/hopper/backward/sum_group.cuh"
#include "attention/hopper/backward/writer.cuh"

namespace jax_baracuda {

template <class Traits>
__device__ __forceinline__ void init_backward_barriers(typename Traits::Control& control) {
  constexpr int kWarps = Traits::kConsumers / 32;
  const auto init = [](uint64_t& barrier, int arrivals) {
    mbarrier_init(shared_address(&barrier), arrivals);
  };
  const auto init_for_warps = [&](uint64_t& barrier, int warps) {
    init(barrier, warps * kWarpArrivals);
  };
  control.loaded = 0;
  for (int i = 0; i < Traits::kKeyStages; ++i) {
    init(control.key_full[i], 1);
    init_for_warps(control.key_empty[i], kWarps + Traits::kSumWarps);
  }
  init(control.value_full, 1);
  init_for_warps(control.value_empty, kWarps);
  for (int i = 0; i < Traits::kQueryStages; ++i) {
    init(control.query_full[i], 1);
    init_for_warps(control.query_empty[i], kWarps);
  }
  for (int i = 0; i < Traits::kDOutStages; ++i) {
    init(control.dout_full[i], 1);
    init_for_warps(control.dout_empty[i], kWarps);
  }
  for (QueryGradientSum& sum : control.sum) init_for_warps(sum.full, Traits::kQueryParts);
  for (uint64_t& empty : control.sum_empty) init(empty, 1);
  for (AddedTile& added : control.added) {
    init_for_warps(added.full, Traits::kSumGroup ? Traits::kSumWarps : kWarps / Traits::kGroups);
    init(added.empty, 1);
  }
  for (auto& of_warp : control.place_full)
    for (uint64_t& full : of_warp) init(full, 1);
  for (int i = 0; i < Traits::kGradientStages; ++i) {
    init_for_warps(control.gradient_full[i], kWarps);
    init_for_warps(control.gradient_empty[i],
                   Traits::kSumGroup ? Traits::kSumWarps : Traits::kQueryParts);
  }
  mbarrier_init_fence();
}

#ifdef JAX_BARACUDA_WATCHDOG_WARP
// Debug builds: a warp that has nothing else to do traps if the others are not done in about two seconds. (A trap
// where barriers are waited for would cost the consumers registers.)
__device__ __forceinline__ void watch(volatile int* done, int warps) {
  for (const long long start = clock64(); *done < warps; __nanosleep(10000))
    if (clock64() - start > (1ll << 32)) __trap();
}
#endif

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    hopper_backward_kernel(const __grid_constant__ HopperBackwardParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // wgmma exists on sm_90a alone
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const uint32_t shared = shared_address(shared_memory);
  auto& control =
      *reinterpret_cast<typename Traits::Control*>(shared_memory + Traits::kControlOffset);
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
#ifdef JAX_BARACUDA_WATCHDOG_WARP
  __shared__ int done;
  if (threadIdx.x == 0) done = 0;
#endif
  if (threadIdx.x == 0) {
    tma_prefetch_map(&p.query);
    tma_prefetch_map(&p.dout);
    tma_prefetch_map(&p.key);
    tma_prefetch_map(&p.value);
    init_backward_barriers<Traits>(control);
  }
  const bool converts = Traits::kConverts && p.done;
  if (converts && threadIdx.x < Traits::kConversionBytes / 16) {
    store_shared_16(shared + Traits::kZeroOffset + threadIdx.x * 16, make_uint4(0, 0, 0, 0));
    fence_async_shared();
  }
  __syncthreads();
  if (warpgroup == 0) {
    registers_lower<Traits::kProducerRegisters>();
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    if (warp == 0)
      BackwardProducer<Traits>(p, control, shared, threadIdx.x).run(blockIdx.x);
    else if (adds_in_order<Traits>(p.problem) && threadIdx.x % 32 == 0)
      add_in_turn<Traits>(p.problem, control, shared, warp - 1);
    else if (converts && warp > Traits::kGroups - 1)
      QueryGradientConverter<Traits, Traits::kConversions>(p, control, shared, 8 + warp - 2,
                                                           threadIdx.x % 32)
          .run();
    else if (converts && threadIdx.x % 32 == 0)
      tell_done<Traits>(p, control);
#ifdef JAX_BARACUDA_WATCHDOG_WARP
    if (threadIdx.x == 97) watch(&done, 9 + Traits::kSumWarps);
#endif
  } else if (Traits::kSumGroup && warpgroup > Traits::kGroups) {
    if constexpr (Traits::kSumGroup) {
      registers_lower<Traits::kSumRegisters>();
      QueryGradientGroup<Traits>(p, control, shared).run();
    }
  } else {
    registers_raise<Traits::kConsumerRegisters>();
    BackwardConsumer<Traits>(p, control, shared, warpgroup - 1).run();
  }
#ifdef JAX_BARACUDA_WATCHDOG_WARP
  if (threadIdx.x % 32 == 0 && (warpgroup > 0 || threadIdx.x < 32)) atomicAdd(&done, 1);
#endif
#endif
}

}  // namespace jax_baracuda
