// A medium number of rows, on Hopper: out^T = w^T x^T, the weights streaming once through many warpgroups at a time.
//
// A warpgroup waits for its weights, makes operands of them, and waits for the tensor cores: that takes several times
// what it keeps any of them busy, so that an SM needs four to eight. No warp only loads: every thread copies the 16 bytes
// of a tile that it will multiply itself, and the warpgroups that share x and the scales load them in turns, by TMA and
// bulk copies. Warpgroups lie next to each other (64 channels each) and behind each other in depth, CTAs behind each other
// again: those of a cluster add up their sums themselves, others leave them in the workspace. The stages follow each other
// in the code, so that their addresses are constants.
#pragma once

#include <utility>

#include "device/bulk.cuh"
#include "device/divide.cuh"
#include "device/elect.cuh"
#include "device/mbarrier.cuh"
#include "device/memory.cuh"
#include "device/tma.cuh"
#include "device/wgmma.cuh"
#include "int4/dequantise.cuh"
#include "int4/exchange.cuh"
#include "int4/hold.cuh"
#include "int4/hopper_params.h"
#include "int4/uniform.cuh"

namespace jax_baracuda {

// kN: rows of x. kMaxStages: as many as fit, at most. kScaleSteps: k-steps of 16 that share a scale, 2, 4 or 8.
template <class T_, int kN_, int kChannelGroups_, int kDepthGroups_, int kMaxStages,
          int kScaleSteps_>
struct MediumTraits {
  using T = T_;
  static constexpr int kN = kN_, kScaleSteps = kScaleSteps_;
  static constexpr int kChannelGroups = kChannelGroups_, kDepthGroups = kDepthGroups_;
  static constexpr int kGroups = kChannelGroups * kDepthGroups, kThreads = 128 * kGroups;
  static constexpr int kChannels = kChannelGroups * kStrip;
  // A chunk of k-steps is made ready while the tensor cores work on the one before it. Many warpgroups leave registers for
  // one k-step alone, or for two of few rows.
  static constexpr int kUnit = 2, kSteps = kUnit * 4;
  static constexpr int kChunk = kGroups <= 4 ? 4 : kN == 16 ? 2 : 1;
  static constexpr int kLoadAt = kChunk == 4 ? 4 : 6;  // k-steps before the next loads
  // With few rows a stage that has one scale leaves registers for sums of its own: those are scaled, and not the weights.
  static constexpr bool kStageSums = kN <= 32 && kScaleSteps == kSteps;

  // Whether copies lie next to each other (device/elect.cuh), which takes registers.
  static constexpr bool kElects = (kGroups != 7 || kN == 16) && kN < 128;

  // A stage: x and the scales and zero points of a depth group, kUnit tiles of weights of each of its warpgroups.
  using Rows = PanelTile<kN, kUnit * kDepth>;
  static constexpr int kWeightBytes = kUnit * kTileBytes;
  static constexpr int kScaleRows = kSteps / kScaleSteps;
  static constexpr int kScaleBytes = kScaleRows * kChannels * 3;  // the zero points last
  static constexpr int kStageBytes =
      kDepthGroups * (Rows::kBytes + kScaleBytes) + kGroups * kWeightBytes;

  using Exchange = SumExchange<kN, kChannelGroups, kDepthGroups>;  // in the place of the ring
  static constexpr int kMostBytes = kMostExchangeBytes;            // of an SM, less the barriers
  static constexpr int kFitting = kMostBytes / kStageBytes;
  static constexpr int kStages = kFitting < kMaxStages ? kFitting : kMaxStages;
  static_assert(kStages >= 2);
  // Of the ring, stages that are not loaded: where there are enough, a warpgroup may be one behind those that load for it.
  static constexpr int kFree = kN < 128 && kStages >= 4 ? 2 : 1;
  static constexpr int kWeightsOffset = kStages * kDepthGroups * Rows::kBytes;
  static constexpr int kScalesOffset = kWeightsOffset + kStages * kGroups * kWeightBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;
  // Clusters only where what they exchange fits.
  static constexpr int kExchangeBytes = Exchange::kBytes <= kMostBytes ? Exchange::kBytes
                                        : Exchange::kHalvesBytes <= kMostBytes
                                            ? Exchange::kHalvesBytes
                                            : Exchange::kLocalBytes;
  static constexpr int kBarriersOffset = kRingBytes > kExchangeBytes ? kRingBytes : kExchangeBytes;
  static constexpr int kSharedBytes = kBarriersOffset + (2 * kStages * kDepthGroups + 1) * 8;
  static_assert(kSharedBytes <= 232448, "an SM has 227 KB");
};

// Read anew every time: what follows from it is then not kept while the products need the registers.
__device__ __forceinline__ uint32_t read_thread() {
  uint32_t thread;
  asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(thread));
  return thread;
}

template <class Traits>
struct MediumKernel {
  using T = typename Traits::T;
  using Rows = typename Traits::Rows;
  using Exchange = typename Traits::Exchange;
  static constexpr int kN = Traits::kN, kStages = Traits::kStages, kChunk = Traits::kChunk;
  static constexpr int kDepthGroups = Traits::kDepthGroups;
  static constexpr int kScaleSteps = Traits::kScaleSteps;
  // Tiles from a unit of this warpgroup to its next, and from the one that is multiplied to the one that is loaded.
  static constexpr int kStep = kDepthGroups * Traits::kUnit;
  static constexpr int kFree = Traits::kFree;
  static constexpr int kAhead = (kStages - kFree) * kStep;
  // Counting rounds instead of stages saves instructions; tiles of four warpgroups are slower with it.
  static constexpr bool kByRounds = Traits::kGroups > 4;

  const HopperParams& params;
  const Int4Params& p = params.problem;
  const uint32_t base, thread;
  const int lane = thread % 32, warp = thread / 32 % 4;  // of the warpgroup
  const int group = shared_by_lanes(thread / 128);
  const int channel_group = group % Traits::kChannelGroups,
            depth_group = group / Traits::kChannelGroups;
  const int split = blockIdx.x, row_block = blockIdx.y, channel_block = blockIdx.z;

  // In the first stage: this thread's words, its two channels' scales and zero points, the rows of x of its depth group.
  const uint32_t weights =
      base + Traits::kWeightsOffset + group * Traits::kWeightBytes + thread % 128 * 16;
  const uint32_t zeros = scales_of(0) + pair(), scales = zeros + pair();
  const uint64_t rows = Rows::descriptor(base + depth_group * Rows::kBytes);
  // What is loaded next, or by the first stage of a round of all stages: its first 16 bytes of this thread, tiles from there on.
  const uint8_t* from = p.packed + static_cast<uint64_t>(first_piece(first_tile() + kAhead)) * 16;
  int left = end_tile() - first_tile() - kAhead;
  // Loads of what is shared until it is this warp's turn: one warp of the warpgroup, the others never.
  int turn = shared_by_lanes(warp == channel_group % 4 ? channel_group : 1 << 30);

  __device__ __forceinline__ MediumKernel(const HopperParams& params, uint32_t base)
      : params(params), base(base), thread(read_thread()) {}

  // The first of this thread's channels in the CTA.
  __device__ __forceinline__ int pair() const {
    return channel_group * kStrip + warp * 16 + lane / 4 * 2;
  }

  // The part of the depth that this CTA has, in units and in tiles: the last one may have half a unit.
  __device__ __forceinline__ int first_unit(int split) const {
    return split * p.split_units + min(split, p.longer_splits);
  }
  __device__ __forceinline__ int first_tile() const {  // of this warpgroup
    return (first_unit(split) + depth_group) * Traits::kUnit;
  }
  __device__ __forceinline__ int end_tile() const {
    return min(first_unit(split + 1) * Traits::kUnit, p.depth_tiles);
  }

  // The first row of x. Rows that are not there take the copy engine longer than others, which two depth groups of as many
  // rows wait for: there the last block has rows of the one before again instead. What both store is the same.
  __device__ __forceinline__ int first_row() const {
    const int row = row_block * kN;
    return kN == 128 && kDepthGroups > 1 ? min(row, max(p.rows - kN, 0)) : row;
  }

  // This warpgroup's strip. One that is not there: the last one again, for nobody.
  __device__ __forceinline__ int strip() const {
    return min(channel_block * Traits::kChannelGroups + channel_group, p.strips - 1);
  }
  // What this thread copies of the weights from a tile on, in pieces of 16 bytes.
  __device__ __forceinline__ uint32_t first_piece(int tile) const {
    return (static_cast<uint32_t>(strip()) * p.depth_tiles + tile) * (kTileBytes / 16) +
           thread % 128;
  }

  // Shared addresses of this depth group, warpgroup, thread in the first stage; the others follow at constant distances.
  __device__ __forceinline__ uint32_t full(int stage) const {
    return base + Traits::kBarriersOffset + depth_group * 8 + stage * (kDepthGroups * 8);
  }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(kStages + stage); }
  __device__ __forceinline__ uint32_t rows_of(int stage) const {
    return base + depth_group * Rows::kBytes + stage * (kDepthGroups * Rows::kBytes);
  }
  __device__ __forceinline__ uint32_t scales_of(int stage) const {
    return base + Traits::kScalesOffset + depth_group * Traits::kScaleBytes +
           stage * (kDepthGroups * Traits::kScaleBytes);
  }
  static __device__ __forceinline__ int scale_row(int row) { return row * Traits::kChannels * 2; }
  static __device__ __forceinline__ int zero_row(int row) {
    return (Traits::kScaleRows * 2 + row) * Traits::kChannels;
  }

  // By one thread.
  __device__ __forceinline__ void init_barriers() const {
    for (int at = 0; at < kStages * kDepthGroups; ++at) {
      mbarrier_init(base + Traits::kBarriersOffset + at * 8, 1);
      mbarrier_init(base + Traits::kBarriersOffset + (kStages * kDepthGroups + at) * 8,
                    4 * Traits::kChannelGroups);
    }
    mbarrier_init_fence();
  }

  // --- Loads ---

  // Starts to copy this thread's part of a unit: zeros where it has no tile, so that no branch parts the lanes.
  // The unit lies so many units of this warpgroup behind what the first stage of a round loads.
  __device__ __forceinline__ void load_own(int stage, int units) const {
    const uint32_t to = weights + stage * (Traits::kGroups * Traits::kWeightBytes);
    const uint8_t* const tile = from + units * (kStep * kTileBytes);
    copy_async_16(to, tile, left > units * kStep);
    copy_async_16(to + kTileBytes, tile + kTileBytes, left > units * kStep + 1);
    copy_async_commit();
  }

  // What warpgroups share of a unit, as soon as the stage is empty: by one warp of one of them, whose warpgroup waits
  // meanwhile. So they do it in turns, and none falls behind.
  __device__ __forceinline__ void load_shared(int stage, int empty_parity, int left) {
    if (turn == 0) {
      turn = Traits::kChannelGroups;
      if (left > 0 && is_loader()) {
        mbarrier_wait(empty(stage), empty_parity);
        load_unit(stage, end_tile() - left);
      }
      __syncwarp();
    }
    --turn;
  }
  // One lane of the warp.
  __device__ __forceinline__ bool is_loader() const {
    return Traits::kElects ? elect_lane() : lane == 0;
  }
  // x, scales and zero points. Columns of x past the end become zeros, and meet the scales of some group: those of one that is
  // there.
  __device__ __forceinline__ void load_unit(int stage, int first_tile) const {
    // Not worked out before it is needed: that would take registers of all.
    int first = channel_block * Traits::kChannels, width = p.strips * kStrip;
    asm volatile("" : "+r"(first), "+r"(width));
    const int channels = min(Traits::kChannels, width - first);
    mbarrier_arrive_expect(full(stage), Rows::kBytes + channels * 3 * Traits::kScaleRows);
#pragma unroll
    for (int panel = 0; panel < Rows::kPanels; ++panel)
      tma_load(rows_of(stage) + panel * Rows::kPanelBytes, &params.x, full(stage),
               (first_tile + panel) * kDepth, first_row(), 0, 0, kEvictLast);
#pragma unroll
    for (int row = 0; row < Traits::kScaleRows; ++row) {
      const int tile =
          min(first_tile + row * Traits::kUnit / Traits::kScaleRows, p.depth_tiles - 1);
      const int group = Traits::kScaleRows == 4 ? 2 * tile + row % 2 : divide(tile, p.group_tiles);
      const int64_t at = static_cast<int64_t>(group) * width + first;
      bulk_load(scales_of(stage) + scale_row(row), static_cast<const T*>(p.scales) + at,
                channels * 2, full(stage));
      bulk_load(scales_of(stage) + zero_row(row), p.zeros + at, channels, full(stage));
    }
  }

  // Fills all stages but kFree: with weights, and when the barriers are ready with the rest.
  __device__ __forceinline__ void begin_weights() const {
#pragma unroll
    for (int stage = 0; stage < kStages - kFree; ++stage)
      load_own(stage, stage - (kStages - kFree));
  }
  __device__ __forceinline__ void begin_shared() {
    const int left = end_tile() - first_tile();
#pragma unroll
    for (int stage = 0; stage < kStages - kFree; ++stage)
      load_shared(stage, 1, left - stage * kStep);
  }

  // --- Products ---

  // What a thread needs to make operands: its words of a tile, the scales and zero points of its two channels.
  struct Operands {
    uint4 words;
    uint32_t scales, zeros;
  };

  __device__ __forceinline__ void load_words(Operands& o, int stage, int tile) const {
    o.words = load_shared_16(weights + stage * (Traits::kGroups * Traits::kWeightBytes) +
                             tile * kTileBytes);
  }
  // Of the group that k-step `step` belongs to.
  __device__ __forceinline__ void load_scales_of(Operands& o, int stage, int step) const {
    const int row = step / kScaleSteps, at = stage * (kDepthGroups * Traits::kScaleBytes);
    o.scales = load_shared_4(scales + at + scale_row(row));
    o.zeros = load_shared_2(zeros + at + zero_row(row));
  }

  // Waits for a unit, and loads the first of it.
  __device__ __forceinline__ void acquire(Operands& o, int stage, int parity) const {
    copy_async_wait<kStages - kFree - 1>();
    mbarrier_wait(full(stage), parity);
    load_scales_of(o, stage, 0);
    load_words(o, stage, 0);
  }

  static constexpr bool kStageSums = Traits::kStageSums;
  using Nibbles = std::conditional_t<kStageSums, GroupNibbles<T>, ScaledNibbles<T>>;
  using Sums = float[kN / 2];

  // Products of the chunk that begins with k-step `first`, which may begin new sums.
  __device__ __forceinline__ void issue(Sums& sums, const uint32_t (&a)[kChunk][4], int stage,
                                        int first) const {
    uint64_t at = rows;
    if constexpr (kChunk == 1) hold(at);  // what follows from it is not kept, for want of registers
    warpgroup_arrive();
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      WarpgroupMma<T, kN>::registers_transposed(
          sums, a[i],
          advance(at,
                  stage * (kDepthGroups * Rows::kBytes) + Rows::column_offset(16 * (first + i))),
          kStageSums && first + i == 0 ? 0 : 1);
    warpgroup_commit();
  }

  // The unit in `kStage`, which is acquired; then acquires the next one. Returns whether there is one. `group`: room for the
  // sums of a stage.
  template <int kStage>
  __device__ __forceinline__ bool multiply_unit(Sums& sums, Sums& group, Operands& o, int parity) {
    constexpr int kBefore = (kStage + kStages - kFree) % kStages, kNext = (kStage + 1) % kStages;
    constexpr int kDone = kByRounds ? kStage * kStep : 0;  // tiles since `from`
    uint32_t a[2][kChunk][4];
    Sums& products = kStageSums ? group : sums;
    Nibbles nibbles(o.zeros, o.scales);
    const bool more = left > kDone + kStep - kAhead;
#pragma unroll
    for (int first = 0; first < Traits::kSteps; first += kChunk) {
      auto& operands = a[first / kChunk % 2];
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const int step = first + i;
        if (step > 0 && step % kScaleSteps == 0) {
          load_scales_of(o, kStage, step);
          nibbles = Nibbles(o.zeros, o.scales);
        }
        nibbles.run(operands[i], step % 4 == 0   ? o.words.x
                                 : step % 4 == 1 ? o.words.y
                                 : step % 4 == 2 ? o.words.z
                                                 : o.words.w);
      }
      const int next = first + kChunk;
      issue(products, operands, kStage, first);
      if (next % 4 == 0 && next < Traits::kSteps) load_words(o, kStage, next / 4);
      if (next == Traits::kSteps) {
        if (more) acquire(o, kNext, kNext == 0 ? parity ^ 1 : parity);
        warpgroup_wait<0>();
        hold(products);
        if constexpr (kStageSums) nibbles.add(sums, group);
      } else {
        warpgroup_wait<1>();
      }
      if constexpr (kChunk == 1) hold(o.words);  // nothing ahead of the wait, for want of registers
      if (next ==
          Traits::kLoadAt) {  // that stage, which is empty or about to be, takes the next load
        load_own(kBefore, kDone / kStep);
        load_shared(kBefore, kStage < kFree ? parity ^ 1 : parity, left - kDone);
        if constexpr (!kByRounds) from += kStep * kTileBytes;
      }
    }
    release(kStage);
    if constexpr (!kByRounds) left -= kStep;
    return more;
  }
  template <int... kStage>
  __device__ __forceinline__ bool multiply_round(Sums& sums, Sums& group, Operands& o, int parity,
                                                 std::integer_sequence<int, kStage...>) {
    return (multiply_unit<kStage>(sums, group, o, parity) && ...);
  }

  // All products of this warpgroup.
  __device__ __forceinline__ void multiply(Sums& sums) {
    if (left + kAhead > 0) {
      Operands o;
      Sums group = {};
      acquire(o, 0, 0);
#pragma unroll 1
      for (int parity = 0;
           multiply_round(sums, group, o, parity, std::make_integer_sequence<int, kStages>());
           parity ^= 1) {
        if constexpr (!kByRounds) continue;
        from += kStages * kStep * kTileBytes;
        left -= kStages * kStep;
      }
    }
    if constexpr (kStageSums) Nibbles::finish(sums);
    copy_async_wait_all();  // of zeros
  }

  __device__ __forceinline__ void release(int stage) const {
    mbarrier_arrive_if(empty(stage), lane == 0);
  }

  __device__ __forceinline__ Exchange exchange() const {
    return {base,
            base + Traits::kBarriersOffset + 2 * kStages * kDepthGroups * 8,
            p.partials ? 1 : p.splits,
            split,
            p.rows - first_row(),
            static_cast<int>(thread % (Traits::kChannelGroups * 128)),
            depth_group};
  }

  // Stores this thread's sums, whole or of a split.
  __device__ __forceinline__ void finish(const float (&sums)[kN / 2]) const {
    const int row = first_row() + lane % 4 * 2;
    const int channel =
        channel_block * Traits::kChannels + channel_group * kStrip + warp * 16 + lane / 4 * 2;
    const auto exchange = this->exchange();
    exchange.arrive();
    exchange.finish(sums,
                    [&] { return ChannelPair<T>(p, channel, row, p.partials != nullptr, split); });
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    int4_medium_kernel(const __grid_constant__ HopperParams params) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // wgmma exists on sm_90a alone
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const uint32_t base = shared_address(shared_memory);
  float sums[Traits::kN / 2] = {};
  {
    MediumKernel<Traits> kernel(params, base);
    kernel.begin_weights();
    launch_dependents();
    if (kernel.thread == 0) {
      tma_prefetch_map(&params.x);
      kernel.init_barriers();
      kernel.exchange().init();
    }
    __syncthreads();
    kernel.begin_shared();
    kernel.multiply(sums);
  }
  MediumKernel<Traits>(params, base).finish(sums);
#endif
}

}  // namespace jax_baracuda
