// The Hopper backward kernel of large head dims: a tile of keys for a cluster of two CTAs, which load Q and dO for each
// other and share dQ by columns. In each of them a warp loads and two warpgroups compute.
#pragma once

#include "attention/hopper/backward/pair_gradients.cuh"
#include "attention/hopper/backward/pair_weights.cuh"
#include "attention/hopper/backward/producer.cuh"

namespace jax_baracuda {

template <class Traits>
__device__ __forceinline__ void init_pair_barriers(typename Traits::Control& control) {
  constexpr int kArrivals = Traits::kConsumers / 32 * kWarpArrivals;
  const auto init = [](uint64_t& barrier, int arrivals) {
    mbarrier_init(shared_address(&barrier), arrivals);
  };
  init(control.key_full[0], 1);
  init(control.key_empty[0], kArrivals);
  init(control.value_full, 1);
  init(control.value_empty, kArrivals / 2);
  init(control.weights_full, kArrivals / 2);
  init(control.weights_empty, kArrivals / 2);
  for (QueryGradientTurn& turn : control.turn) {
    init(turn.announced, 1);
    init(turn.seen, 1);
    turn.come = 0;
    init(turn.added, kArrivals / 2);
  }
  for (int i = 0; i < Traits::kQueryStages; ++i) {
    init(control.query_full[i], 1);
    init(control.query_empty[i], 2 * kArrivals);  // of both CTAs
  }
  for (int i = 0; i < Traits::kDOutStages; ++i) {
    init(control.dout_full[i], 1);
    init(control.dout_empty[i], 2 * kArrivals);
  }
  for (int i = 0; i < Traits::kGradientStages; ++i) {
    init(control.gradient_full[i], 1);
    init(control.gradient_empty[i], 2 * kArrivals);
  }
  mbarrier_init_fence();
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) __cluster_dims__(2, 1, 1)
    hopper_pair_kernel(const __grid_constant__ HopperBackwardParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // wgmma exists on sm_90a alone
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const uint32_t shared = shared_address(shared_memory);
  auto& control =
      *reinterpret_cast<typename Traits::Control*>(shared_memory + Traits::kControlOffset);
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  const int rank = cluster_rank();
  if (threadIdx.x == 0) {
    tma_prefetch_map(&p.query);
    tma_prefetch_map(&p.dout);
    tma_prefetch_map(&p.key);
    tma_prefetch_map(&p.value);
    init_pair_barriers<Traits>(control);
    // Places in the order of the beginnings: whoever waits for a turn waits for CTAs that run.
    if (rank == 0) control.place = atomicAdd(p.counter, 1);
  }
  __syncwarp();
  cluster_sync();
  if (warpgroup == 0) {
    registers_lower<Traits::kProducerRegisters>();
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    if (warp > 0) {
      if (Traits::kInOrder && warp <= 2 && threadIdx.x % 32 == 0)
        keep_turns<Traits>(p.problem, control, warp - 1);
    } else {
      const int place = load_remote_int(shared_address(&control.place), 0);
      BackwardProducer<Traits>(p, control, shared, threadIdx.x).run(place);
    }
  } else {
    registers_raise<Traits::kConsumerRegisters>();
    if (warpgroup == 1)
      PairWeights<Traits>(p, control, shared).run();
    else
      PairGradients<Traits>(p, control, shared).run();
  }
  // The other CTA may still copy to this one or arrive at its barriers.
  __syncwarp();
  cluster_sync();
#endif
}

}  // namespace jax_baracuda
