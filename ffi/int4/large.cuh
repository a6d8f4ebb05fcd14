// Many rows, on Hopper: out^T = w^T x^T with the weights dequantised to the A registers of wgmma.
//
// One warp loads x by TMA and the weights by bulk copies; two CTAs next to each other load x for each other where a tile is
// high. Warpgroups have 64 channels each of the same kN rows of x: while the tensor cores work on one's tile of weights,
// others dequantise theirs. A CTA takes tile after tile of the output and maybe parts of the depth of some
// (large_work.cuh), or one tile whose sums it adds up with those of its cluster.
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
#include "int4/hopper_params.h"
#include "int4/large_work.cuh"
#include "int4/uniform.cuh"

namespace jax_baracuda {

// kScaleRows: scales of a tile of 64 input channels, 2 for groups of 32.
template <class T_, int kChannelGroups_, int kN_, int kStages_, int kScaleRows_>
struct LargeTraits {
  using T = T_;
  static constexpr int kN = kN_, kStages = kStages_, kScaleRows = kScaleRows_;
  static constexpr int kChannelGroups = kChannelGroups_;
  static constexpr int kPair = large_pair(kN);  // CTAs that load x for each other
  static constexpr int kChannels = kChannelGroups * kStrip;
  static constexpr int kConsumers = 128 * kChannelGroups, kThreads = kConsumers + 128;
  // They add up to what the CTA has at its start: 168 registers a thread of 384.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(kChannelGroups == 2);

  using Rows = PanelTile<kN, kDepth>;
  static constexpr int kWeightBytes = kChannelGroups * kTileBytes;
  static constexpr int kScaleBytes = kScaleRows * kChannels * 2,
                       kZeroBytes = kScaleRows * kChannels;
  // Half of the output of a warpgroup, on its way to memory: where a CTA takes tile after tile.
  using Panel = PanelTile<kN / 2, kStrip>;
  static constexpr int kPanelsOffset = kStages * Rows::kBytes;
  static constexpr int kWeightsOffset =
      kPanelsOffset + (kPair > 1 ? kChannelGroups * Panel::kBytes : 0);
  static constexpr int kScalesOffset = kWeightsOffset + kStages * kWeightBytes;
  static constexpr int kZerosOffset = kScalesOffset + kStages * kScaleBytes;
  static constexpr int kRingBytes = kZerosOffset + kStages * kZeroBytes;

  using Exchange = SumExchange<kN, kChannelGroups, 1>;  // in its place
  static constexpr int kExchangeBytes = kPair == 1 ? Exchange::kBytes : 0;
  static constexpr int kBarriersOffset = kRingBytes > kExchangeBytes ? kRingBytes : kExchangeBytes;
  static constexpr int kSharedBytes = kBarriersOffset + (2 * kStages + 1) * 8;
  static_assert(kSharedBytes <= 232448, "an SM has 227 KB");
};

template <class Traits>
struct LargeKernel {
  using T = typename Traits::T;
  using Rows = typename Traits::Rows;
  static constexpr int kN = Traits::kN, kScaleRows = Traits::kScaleRows;

  const HopperParams& params;
  const Int4Params& p = params.problem;
  unsigned char* const shared;
  const uint32_t base = shared_address(shared);
  const int split = Traits::kPair == 1 ? blockIdx.x % p.splits : 0;
  const int rank = Traits::kPair == 1 ? 0 : blockIdx.x % Traits::kPair;
  uint32_t rounds =
      0;  // bit `stage`: whether that stage has been gone through an odd number of times

  __device__ __forceinline__ LargeKernel(const HopperParams& params, unsigned char* shared)
      : params(params), shared(shared) {}

  __device__ __forceinline__ uint32_t full(int stage) const {
    return base + Traits::kBarriersOffset + stage * 8;
  }
  __device__ __forceinline__ uint32_t empty(int stage) const {
    return full(Traits::kStages + stage);
  }

  __device__ __forceinline__ void init_barriers() const {
    for (int stage = 0; stage < Traits::kStages; ++stage) {
      mbarrier_init(full(stage), 1);
      mbarrier_init(empty(stage), 4 * Traits::kChannelGroups * Traits::kPair);
    }
    mbarrier_init_fence();
  }

  __device__ __forceinline__ LargeWork<Traits::kPair> work() const {
    return LargeWork<Traits::kPair>(params, split);
  }

  // --- The loading thread ---

  // Other row blocks read the weights again.
  __device__ __forceinline__ uint64_t weight_policy() const {
    return params.row_blocks == 1 ? kEvictFirst : kEvictNormal;
  }

  // Part `rank` of the rows, to all of the pair.
  __device__ __forceinline__ void load_rows(uint32_t to, uint32_t barrier, int row_block,
                                            int tile) const {
    constexpr int kRows = kN / Traits::kPair;
    const int first = rank * kRows;
    if constexpr (Traits::kPair == 1)
      tma_load(to, &params.x, barrier, tile * kDepth, row_block * kN, 0, 0, kEvictLast);
    else
      tma_load_multicast(to + Rows::row_offset(first), &params.x, barrier, tile * kDepth,
                         row_block * kN + first, 0, 0, (1 << Traits::kPair) - 1, kEvictLast);
  }

  __device__ __forceinline__ void load_tile(int stage, int row_block, int channel_block, int tile) {
    const uint32_t barrier = full(stage);
    const int width = p.strips * kStrip;
    const int first = min(channel_block, params.channel_blocks - 1) * Traits::kChannels;
    const int channels = min(Traits::kChannels, width - first);
    mbarrier_wait(empty(stage), ~rounds >> stage & 1);
    mbarrier_arrive_expect(barrier,
                           Rows::kBytes + Traits::kWeightBytes + channels * 3 * kScaleRows);
#pragma unroll
    for (int strip = 0; strip < Traits::kChannelGroups; ++strip) {
      // Strips that are not there: the last one again, for nobody.
      const int of = min(channel_block * Traits::kChannelGroups + strip, p.strips - 1);
      bulk_load(base + Traits::kWeightsOffset + stage * Traits::kWeightBytes + strip * kTileBytes,
                p.packed + (static_cast<int64_t>(of) * p.depth_tiles + tile) * kTileBytes,
                kTileBytes, barrier, weight_policy());
    }
    load_rows(base + stage * Rows::kBytes, barrier, row_block, tile);
#pragma unroll
    for (int row = 0; row < kScaleRows; ++row) {
      const int group = kScaleRows == 2 ? 2 * tile + row : divide(tile, p.group_tiles);
      const int64_t at = static_cast<int64_t>(group) * width + first;
      bulk_load(
          base + Traits::kScalesOffset + stage * Traits::kScaleBytes + row * Traits::kChannels * 2,
          static_cast<const T*>(p.scales) + at, channels * 2, barrier, kEvictLast);
      bulk_load(base + Traits::kZerosOffset + stage * Traits::kZeroBytes + row * Traits::kChannels,
                p.zeros + at, channels, barrier, kEvictLast);
    }
    rounds ^= 1u << stage;
  }

  // Every piece of work begins in the first stage.
  __device__ __forceinline__ void produce() {
    for (auto work = this->work(); work.next();) {
      int stage = 0;
      for (int tile = work.first_tile; tile < work.end_tile; ++tile) {
        load_tile(stage, work.row_block, work.channel_block + rank, tile);
        stage = after(stage);
      }
    }
  }

  // --- A warpgroup that multiplies ---

  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0) % 4;  // of the warpgroup
  const int strip = shared_by_lanes(threadIdx.x / 128);
  // The first of this thread's channels in the CTA, and in the first stage its words, scales and zero points.
  const int pair = strip * kStrip + warp * 16 + lane / 4 * 2;
  const uint32_t weights =
      base + Traits::kWeightsOffset + strip * kTileBytes + threadIdx.x % 128 * 16;
  const uint32_t scales = base + Traits::kScalesOffset + pair * 2;
  const uint32_t zeros = base + Traits::kZerosOffset + pair;
  const uint64_t rows = Rows::descriptor(base);

  // What a thread needs to make operands of a tile.
  struct Operands {
    uint4 words;
    uint32_t scales[kScaleRows], zeros[kScaleRows];
  };

  __device__ __forceinline__ void acquire(Operands& o, int stage) {
    mbarrier_wait(full(stage), rounds >> stage & 1);
    rounds ^= 1u << stage;
#pragma unroll
    for (int row = 0; row < kScaleRows; ++row) {
      o.scales[row] =
          load_shared_4(scales + stage * Traits::kScaleBytes + row * Traits::kChannels * 2);
      o.zeros[row] = load_shared_2(zeros + stage * Traits::kZeroBytes + row * Traits::kChannels);
    }
    o.words = load_shared_16(weights + stage * Traits::kWeightBytes);
  }

  static __device__ __forceinline__ void dequantise(uint32_t (&a)[4][4], const Operands& o) {
#pragma unroll
    for (int row = 0; row < kScaleRows; ++row) {
      const ScaledNibbles<T> nibbles(o.zeros[row], o.scales[row]);
#pragma unroll
      for (int step = row * 4 / kScaleRows; step < (row + 1) * 4 / kScaleRows; ++step)
        nibbles.run(a[step], step == 0   ? o.words.x
                             : step == 1 ? o.words.y
                             : step == 2 ? o.words.z
                                         : o.words.w);
    }
  }

  __device__ __forceinline__ void issue(float (&sums)[kN / 2], const uint32_t (&a)[4][4],
                                        int stage) const {
    const uint64_t at = rows + static_cast<uint64_t>(stage) * (Rows::kBytes >> 4);
    warpgroup_arrive();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      WarpgroupMma<T, kN>::registers_transposed(sums, a[step],
                                                advance(at, Rows::column_offset(16 * step)), 1);
    warpgroup_commit();
  }

  // To all CTAs that load x for this one.
  __device__ __forceinline__ void release(int stage, bool valid) const {
    if constexpr (Traits::kPair == 1) {
      mbarrier_arrive_if(empty(stage), valid && lane == 0);
    } else {
      if (valid && lane < Traits::kPair) mbarrier_arrive_at(empty(stage), lane);
    }
  }

  static __device__ __forceinline__ int after(int stage) {
    return stage + 1 == Traits::kStages ? 0 : stage + 1;
  }

  // All products of a tile of the output over a part of the depth.
  __device__ __forceinline__ void multiply(float (&sums)[kN / 2], int tiles) {
    uint32_t a[2][4][4];
    Operands o;
    int previous = -1;
    // The tile in `stage`, which is acquired: acquires the next one, and leaves the products of this one under way.
    auto one_tile = [&](auto& operands, int stage, int next, bool more) {
      dequantise(operands, o);
      if (more) acquire(o, next);
      issue(sums, operands, stage);
      warpgroup_wait<1>();
      release(previous, previous >= 0);
      previous = stage;
    };
    int next_stage = 0, left = tiles;
    if (left > 0) acquire(o, 0);
#pragma unroll 1
    for (; left > 1; left -= 2) {
      const int first = shared_by_lanes(next_stage), second = after(first);
      next_stage = after(second);
      one_tile(a[0], first, second, true);
      one_tile(a[1], second, next_stage, left > 2);
    }
    if (left > 0) one_tile(a[0], shared_by_lanes(next_stage), 0, false);
    warpgroup_wait<0>();
    hold(sums);
    release(previous, previous >= 0);
  }

  // For the one tile of a CTA whose sums are not whole.
  __device__ __forceinline__ typename Traits::Exchange exchange(int row_block) const {
    return {base,
            base + Traits::kBarriersOffset + 2 * Traits::kStages * 8,
            Traits::kPair == 1 ? p.splits : 1,
            split,
            p.rows - row_block * kN,
            static_cast<int>(threadIdx.x),
            0};
  }

  __device__ __forceinline__ void store_part(int slot, const float (&sums)[kN / 2],
                                             int rows) const {
    float4* const to = large_part<Traits>(p, slot * Traits::kPair + rank) + threadIdx.x;
#pragma unroll
    for (int quad = 0; quad < kN / 8; ++quad) {
      const float* s = sums + quad * 4;
      if (quad * 8 < rows) to[quad * Traits::kConsumers] = make_float4(s[0], s[1], s[2], s[3]);
    }
  }

  // Through shared memory, in whole lines, while the next tile is already at work.
  __device__ __forceinline__ void store_panel(const LargeWork<Traits::kPair>& work,
                                              const float (&sums)[kN / 2]) const {
    using Panel = typename Traits::Panel;
    const int first = (work.channel_block + rank) * Traits::kChannels;
    const uint32_t panel = base + Traits::kPanelsOffset + strip * Panel::kBytes;
    const float2 bias = bias_pair<T>(p, first + pair);
    uint32_t to[2];  // of this thread's two rows of eight
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = lane % 4 * 2 + i;
      to[i] = panel + Panel::row_offset(row) + ((pair % kStrip / 8) ^ row) * 16 + pair % 8 * 2;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = work.row_block * kN + half * Panel::kRows;
      if (threadIdx.x % 128 == 0) bulk_wait_read();  // the panel before this one
      named_barrier_sync(1 + strip, 128);
#pragma unroll
      for (int quad = 0; quad < Panel::kRows / 8; ++quad) {
        const float* s = sums + half * (kN / 4) + quad * 4;
#pragma unroll
        for (int i = 0; i < 2; ++i)
          store_shared_4(to[i] + Panel::row_offset(8 * quad),
                         pack_floats<T>(s[i] + bias.x, s[2 + i] + bias.y));
      }
      fence_async_shared();
      named_barrier_sync(1 + strip, 128);
      if (threadIdx.x % 128 == 0 && first + strip * kStrip < p.channels && row < p.rows) {
        tma_store(&params.out, panel, first + strip * kStrip, row);
        bulk_commit();
      }
    }
  }

  // This thread's place in the output.
  __device__ __forceinline__ ChannelPair<T> output(const LargeWork<Traits::kPair>& work) const {
    return {p, (work.channel_block + rank) * Traits::kChannels + pair,
            work.row_block * kN + lane % 4 * 2, false, 0};
  }

  __device__ __forceinline__ void finish(const LargeWork<Traits::kPair>& work,
                                         const float (&sums)[kN / 2]) const {
    if (Traits::kPair > 1 && work.slot >= 0) {
      store_part(work.slot, sums, p.rows - work.row_block * kN);
      return;
    }
    if constexpr (Traits::kPair > 1) {
      if (params.whole_lines) {
        store_panel(work, sums);
        return;
      }
    }
    const auto exchange = this->exchange(work.row_block);
    exchange.arrive();
    exchange.finish(sums, [&] { return output(work); });
  }

  __device__ __forceinline__ void consume() {
    for (auto work = this->work(); work.next();) {
      float sums[kN / 2];
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) sums[i] = 0.0f;
      multiply(sums, work.end_tile - work.first_tile);
      finish(work, sums);
    }
    if (Traits::kPair > 1 && threadIdx.x % 128 == 0) bulk_wait();
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    int4_large_kernel(const __grid_constant__ HopperParams params) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // wgmma exists on sm_90a alone
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  LargeKernel<Traits> kernel(params, shared_memory);
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (threadIdx.x == 0) {
    tma_prefetch_map(&params.x);
    kernel.init_barriers();
    auto work = kernel.work();
    work.next();
    kernel.exchange(work.row_block).init();
  }
  __syncthreads();
  if constexpr (Traits::kPair > 1) {  // the barriers of the others are there
    cluster_arrive_relaxed();
    cluster_wait();
  }
  launch_dependents();
  if (warpgroup == Traits::kChannelGroups) {
    registers_lower<Traits::kProducerRegisters>();
    if (__shfl_sync(0xffffffffu, threadIdx.x / 32, 0) == Traits::kConsumers / 32 && elect_lane())
      kernel.produce();
    __syncwarp();
    const auto exchange = kernel.exchange(0);
    exchange.arrive();
    exchange.stand_by();
  } else {
    registers_raise<Traits::kConsumerRegisters>();
    kernel.consume();
  }
  if constexpr (Traits::kPair > 1) {  // no CTA ends while others arrive at its barriers
    cluster_arrive_relaxed();
    cluster_wait();
  }
#endif
}

}  // namespace jax_baracuda
