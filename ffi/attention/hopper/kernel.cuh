// The Hopper forward kernel: one or two CTAs an SM, a warp that loads and two or three warpgroups that compute
// (FlashAttention-3, Shah et al., 2024, arXiv:2407.08608).
#pragma once

#include "attention/hopper/consumer.cuh"
#include "attention/hopper/producer.cuh"
#include "attention/hopper/row_bias.cuh"

namespace jax_baracuda {

template <class Traits>
__device__ __forceinline__ void init_barriers(typename Traits::Control& control) {
  constexpr int kArrivals = Traits::kConsumers / 32 * kWarpArrivals;
  for (int i = 0; i < Traits::kQueryStages; ++i) {
    mbarrier_init(shared_address(&control.query_full[i]), 1);
    mbarrier_init(shared_address(&control.query_empty[i]), kArrivals);
  }
  for (int i = 0; i < Traits::kStages; ++i) {
    mbarrier_init(shared_address(&control.key_full[i]), Traits::kKeyArrivals);
    mbarrier_init(shared_address(&control.key_empty[i]),
                  Traits::kEmptyArrivals + (Traits::kPaged ? kWarpArrivals : 0));
    mbarrier_init(shared_address(&control.value_full[i]), Traits::kFullArrivals);
    mbarrier_init(shared_address(&control.value_empty[i]), Traits::kEmptyArrivals);
    if constexpr (Traits::kBiased) {
      mbarrier_init(shared_address(&control.bias_full[i]), 1);
      mbarrier_init(shared_address(&control.bias_empty[i]), kArrivals);
    }
    if constexpr (Traits::kRowBiased) mbarrier_init(shared_address(&control.record_full[i]), 1);
  }
  for (int i = Traits::kStages; Traits::kPanelwise && i < Traits::Bias::kPanels; ++i) {
    mbarrier_init(shared_address(&control.bias_full[i]), 1);
    mbarrier_init(shared_address(&control.bias_empty[i]), kArrivals);
  }
  mbarrier_init_fence();
}

// Which warp of the loading warpgroup this is. With three computing warpgroups it has no registers for what lanes might not share.
template <class Traits>
__device__ __forceinline__ int loading_warp() {
  const int warp = threadIdx.x / 32;
  if constexpr (Traits::kGroups == 3 && Traits::kRowBiased)
    return __shfl_sync(0xffffffffu, warp, 0);
  return warp;
}

// The other warps of the loading warpgroup, where there is anything for them to do.
template <class Traits>
__device__ __forceinline__ void help_to_load(const HopperForwardParams& p,
                                             typename Traits::Control& control, uint32_t shared) {
  const int helper = loading_warp<Traits>() - 1, lane = threadIdx.x % 32;
  if constexpr (Traits::kPaged) {
    if (helper == 0) Producer<Traits>(p, control, shared, lane).load_values();
  } else if constexpr (Traits::kRowBiased) {
    if (helper == 0) RowBiasLoader<Traits>(p, control, shared, lane).run();
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kCtas)
    hopper_forward_kernel(const __grid_constant__ HopperForwardParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // wgmma exists on sm_90a alone
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const uint32_t shared = shared_address(shared_memory);
  auto& control =
      *reinterpret_cast<typename Traits::Control*>(shared_memory + Traits::kControlOffset);
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (threadIdx.x == 0) {
    tma_prefetch_map(&p.query);
    tma_prefetch_map(&p.key);
    tma_prefetch_map(&p.value);
    init_barriers<Traits>(control);
  }
  if constexpr (Traits::kPairs)
    cluster_sync();
  else
    __syncthreads();
  if (warpgroup == 0) {
    registers_lower<Traits::kProducerRegisters>();
    if (loading_warp<Traits>() == 0)
      Producer<Traits>(p, control, shared, threadIdx.x).run();
    else
      help_to_load<Traits>(p, control, shared);
  } else {
    registers_raise<Traits::kConsumerRegisters>();
    Consumer<Traits>(p, control, shared, warpgroup - 1).run(shared + Traits::kValueOffset);
    if (Traits::kStaged) bulk_wait_read();
  }
  if constexpr (Traits::kPairs) {  // the other CTA writes here until it is done
    __syncwarp();
    cluster_sync();
  }
#endif
}

}  // namespace jax_baracuda
