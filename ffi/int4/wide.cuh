// As medium.cuh, for layers of very many channels: seven strips a CTA, and a warpgroup that does not multiply.
//
// Few instructions a weight are what counts there. So one warp loads everything by TMA and bulk copies, and weights are
// multiplied without their zero points: those go against the sums of x, for which three warps make a product of their own,
// 16 columns for every eight stages.
#pragma once

#include <utility>

#include "device/bulk.cuh"
#include "device/divide.cuh"
#include "device/elect.cuh"
#include "device/fragment.cuh"
#include "device/mbarrier.cuh"
#include "device/memory.cuh"
#include "device/tma.cuh"
#include "device/wgmma.cuh"
#include "int4/dequantise.cuh"
#include "int4/exchange.cuh"
#include "int4/hold.cuh"
#include "int4/hopper_params.h"
#include "int4/product.cuh"
#include "int4/uniform.cuh"
#include "int4/wide_correct.cuh"
#include "int4/wide_place.cuh"

namespace jax_baracuda {

// One thread: makes the barriers, and loads.
template <class Traits>
struct WideLoader : WidePlace<Traits> {
  using Place = WidePlace<Traits>;
  using Rows = typename Traits::Rows;
  using T = typename Traits::T;
  using Place::channel_block, Place::empty, Place::full, Place::p, Place::params, Place::split;
  static constexpr int kStages = Traits::kStages;

  const int first = this->first_unit(split) * Traits::kUnit, count = this->units();

  __device__ __forceinline__ WideLoader(const HopperParams& params, uint32_t base)
      : Place(params, base) {}

  __device__ __forceinline__ void init_barriers() const {
    constexpr int kWarps = Traits::kMultiplying / 32, kCorrecting = 3;
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(full(stage), 1);
      mbarrier_init(empty(stage), (kWarps + kCorrecting) * kWarpArrivals);
    }
    for (int at = 0; at < Traits::kCorrections; ++at) {
      mbarrier_init(this->ready(at), kCorrecting * kWarpArrivals);
      mbarrier_init(this->done(at), kWarps * kWarpArrivals);
    }
    mbarrier_init_fence();
    this->exchange().init();
  }

  // Other row blocks read the weights again.
  __device__ __forceinline__ uint64_t weight_policy() const {
    return params.row_blocks == 1 ? kEvictFirst : kEvictNormal;
  }

  // Columns of x past the end become zeros, and meet any weights and the scales of a group that is there. A strip that is
  // not there: the last one again, for nobody.
  __device__ __forceinline__ void load_unit(int unit, int stage) const {
    const int tile = first + unit * Traits::kUnit;
    const int width = p.strips * kStrip, first_channel = channel_block * Traits::kChannels;
    const int channels = min(Traits::kChannels, width - first_channel);
    const int weight_bytes = min(Traits::kUnit, p.depth_tiles - tile) * kTileBytes;
    mbarrier_arrive_expect(full(stage),
                           Rows::kBytes + channels * 3 + Traits::kStrips * weight_bytes);
#pragma unroll
    for (int strip = 0; strip < Traits::kStrips; ++strip) {
      const uint32_t from = min(channel_block * Traits::kStrips + strip, p.strips - 1);
      bulk_load(this->weights_of(stage) + strip * Traits::kWeightBytes,
                p.packed + (static_cast<uint64_t>(from) * p.depth_tiles + tile) * kTileBytes,
                weight_bytes, full(stage), weight_policy());
    }
#pragma unroll
    for (int panel = 0; panel < Rows::kPanels; ++panel)
      tma_load(this->rows_of(stage) + panel * Rows::kPanelBytes, &params.x, full(stage),
               (tile + panel) * kDepth, this->first_row(), 0, 0, kEvictLast);
    const int64_t at = static_cast<int64_t>(divide(tile, p.group_tiles)) * width + first_channel;
    bulk_load(this->scales_of(stage), static_cast<const T*>(p.scales) + at, channels * 2,
              full(stage));
    bulk_load(this->zeros_of(stage), p.zeros + at, channels, full(stage));
  }

  __device__ __forceinline__ void begin() const {
    init_barriers();
    for (int unit = 0; unit < min(kStages, count); ++unit) load_unit(unit, unit);
  }
  __device__ __forceinline__ void load() const {
    int stage = 0, parity = 0;
    for (int unit = kStages; unit < count; ++unit) {
      mbarrier_wait(empty(stage), parity);
      load_unit(unit, stage);
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
  }
};

// A warpgroup that multiplies.
template <class Traits>
struct WideMultiplier : WidePlace<Traits> {
  using Place = WidePlace<Traits>;
  using T = typename Traits::T;
  using Rows = typename Traits::Rows;
  using Nibbles = typename Traits::Nibbles;
  static constexpr int kN = Traits::kN, kStages = Traits::kStages, kChunk = Traits::kChunk;
  using Sums = float[kN / 2];
  // Rounds of all stages that a correction is for.
  static constexpr int kRounds = Traits::kCorrected / kStages;

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;  // of the warpgroup
  const int strip = shared_by_lanes(threadIdx.x / 128);
  // In the first stage: this thread's words, its two channels' scales, x.
  const uint32_t weights =
      this->weights_of(0) + strip * Traits::kWeightBytes + threadIdx.x % 128 * 16;
  const uint32_t scales = this->scales_of(0) + pair() * 2;
  const uint64_t rows = Rows::descriptor(this->base);
  const int count = this->units();

  __device__ __forceinline__ WideMultiplier(const HopperParams& params, uint32_t base)
      : Place(params, base) {}

  // The first of this thread's channels in the CTA.
  __device__ __forceinline__ int pair() const { return strip * kStrip + warp * 16 + lane / 4 * 2; }

  struct Operands {
    uint4 words;
    uint32_t scales;
  };
  __device__ __forceinline__ void load_words(Operands& o, int stage, int tile) const {
    o.words = load_shared_16(weights + stage * (Traits::kStrips * Traits::kWeightBytes) +
                             tile * kTileBytes);
  }
  // Waits for a unit, and loads the first of it.
  __device__ __forceinline__ void acquire(Operands& o, int stage, int parity) const {
    mbarrier_wait(this->full(stage), parity);
    o.scales = load_shared_4(scales + stage * Traits::kScaleBytes);
    load_words(o, stage, 0);
  }

  // Products of the chunk that begins with k-step `first`, which may begin new sums.
  __device__ __forceinline__ void issue(Sums& sums, const uint32_t (&a)[kChunk][4], int stage,
                                        int first) const {
    uint64_t at = rows;
    hold(at);  // what follows from it is not kept, for want of registers
    warpgroup_arrive();
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      WarpgroupMma<T, kN>::registers_transposed(
          sums, a[i], advance(at, stage * Rows::kBytes + Rows::column_offset(16 * (first + i))),
          first + i == 0 ? 0 : 1);
    warpgroup_commit();
  }

  // The unit in `kStage`, which is acquired; then acquires the next one. Returns whether there is one. `group`: room for the
  // sums of a stage.
  template <int kStage>
  __device__ __forceinline__ bool multiply_unit(Sums& sums, Sums& group, Operands& o,
                                                int round) const {
    constexpr int kNext = (kStage + 1) % kStages;
    uint32_t a[2][kChunk][4];
    const Nibbles nibbles(o.scales);
    const bool more = count > round * kStages + kStage + 1;
#pragma unroll
    for (int first = 0; first < Traits::kSteps; first += kChunk) {
      auto& operands = a[first / kChunk % 2];
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
        nibbles.run(operands[i], (first + i) % 4 == 0   ? o.words.x
                                 : (first + i) % 4 == 1 ? o.words.y
                                 : (first + i) % 4 == 2 ? o.words.z
                                                        : o.words.w);
      const int next = first + kChunk;
      issue(group, operands, kStage, first);
      if (next == 4) load_words(o, kStage, 1);
      if (next == Traits::kSteps) {
        if (more) acquire(o, kNext, (kNext == 0 ? round + 1 : round) & 1);
        warpgroup_wait<0>();
        hold(group);
        nibbles.add(sums, group);
      } else {
        warpgroup_wait<1>();
      }
      hold(o.words);  // nothing ahead of the wait, for want of registers
    }
    mbarrier_arrive_if(this->empty(kStage), lane < kWarpArrivals);
    return more;
  }
  template <int... kStage>
  __device__ __forceinline__ bool multiply_round(Sums& sums, Sums& group, Operands& o, int round,
                                                 std::integer_sequence<int, kStage...>) const {
    return (multiply_unit<kStage>(sums, group, o, round) && ...);
  }

  __device__ __forceinline__ void correct(Sums& sums, Sums& group, int chunk) const {
    const int at = chunk % Traits::kCorrections;
    const uint32_t from = this->correction(at), sums_of_x = from + Traits::kFactorBytes;
    mbarrier_wait(this->ready(at), chunk / Traits::kCorrections % 2);
    warpgroup_arrive();
#pragma unroll
    for (int part = 0; part < 2; ++part)
      WarpgroupMma<__nv_bfloat16, kN>::shared(
          group, Place::descriptor(from + strip * (kStrip * 32)),
          Place::descriptor(sums_of_x + part * Traits::kSumBytes), part == 0 ? 0 : 1);
    warpgroup_commit();
    warpgroup_wait<0>();
    hold(group);
    Nibbles::add_finished(sums, group);
    mbarrier_arrive_if(this->done(at), lane < kWarpArrivals);
  }

  // All products of this warpgroup. Corrections come a round after what they are for, when they have long been ready.
  __device__ __forceinline__ void multiply(Sums& sums) {
    if (count > 0) {
      Operands o;
      Sums group = {};
      acquire(o, 0, 0);
      int round = 0;
#pragma unroll 1
      while (multiply_round(sums, group, o, round, std::make_integer_sequence<int, kStages>())) {
        if (round % kRounds == 0 && round > 0) correct(sums, group, round / kRounds - 1);
        ++round;
      }
#pragma unroll 1
      for (int chunk = (max(round, 1) - 1) / kRounds; chunk <= round / kRounds; ++chunk)
        correct(sums, group, chunk);
    }
    Nibbles::finish(sums);
  }

  // Stores this thread's sums, whole or of a split.
  __device__ __forceinline__ void finish(const Sums& sums) const {
    const int row = this->first_row() + lane % 4 * 2;
    const int channel = this->channel_block * Traits::kChannels + pair();
    const auto exchange = this->exchange();
    exchange.arrive();
    exchange.finish(sums, [&] {
      return ChannelPair<T>(this->p, channel, row, this->p.partials != nullptr, this->split);
    });
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    int4_wide_kernel(const __grid_constant__ HopperParams params) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // wgmma exists on sm_90a alone
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const uint32_t base = shared_address(shared_memory);
  const int warp = shared_by_lanes(threadIdx.x / 32);
  constexpr int kLoading = Traits::kMultiplying / 32;
  if (warp == kLoading && elect_lane()) WideLoader<Traits>(params, base).begin();
  launch_dependents();
  __syncthreads();
  if (warp < kLoading) {
    float sums[Traits::kN / 2] = {};
    WideMultiplier<Traits> multiplier(params, base);
    multiplier.multiply(sums);
    multiplier.finish(sums);
    return;
  }
  if (warp > kLoading)
    WideCorrector<Traits>(params, base).run();
  else if (elect_lane())
    WideLoader<Traits>(params, base).load();
  __syncwarp();
  const auto exchange = WidePlace<Traits>(params, base).exchange();
  exchange.arrive();
  exchange.stand_by();
#endif
}

}  // namespace jax_baracuda
