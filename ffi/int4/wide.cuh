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

namespace jax_baracuda {

// kN: rows of x. kStrips: warpgroups that multiply. kMaxStages: as many as fit, at most.
template <class T_, int kN_, int kStrips_, int kMaxStages>
struct WideTraits {
  using T = T_;
  static constexpr int kN = kN_, kStrips = kStrips_;
  static constexpr int kChannels = kStrips * kStrip, kMultiplying = 128 * kStrips;
  static constexpr int kThreads = kMultiplying + 128;
  // k-steps that are made ready while the tensor cores work on those before.
  static constexpr int kUnit = 2, kSteps = kUnit * 4, kChunk = 1;

  using Nibbles = RawGroupNibbles<T>;

  // A stage: x, a unit of weights of each strip, scales and zero points.
  using Rows = PanelTile<kN, kUnit * kDepth>;
  static constexpr int kWeightBytes = kUnit * kTileBytes, kScaleBytes = kChannels * 3;
  static constexpr int kStageBytes = Rows::kBytes + kStrips * kWeightBytes + kScaleBytes;

  // What is to be added for the zero points of kCorrected units: a product of 16 columns, two a unit. A: high and low part of
  // each channel's multiple. B: the high part of the sum of x twice, and the same of the low part.
  static constexpr int kCorrected = 8, kCorrections = 2;
  static constexpr int kFactorBytes = kChannels * 32, kSumBytes = kN * 32;
  static constexpr int kCorrectionBytes = kFactorBytes + 2 * kSumBytes;

  using Exchange = SumExchange<kN, kStrips, 1>;  // in the place of the ring
  static constexpr int kFitting =
      (kMostExchangeBytes - kCorrections * kCorrectionBytes) / kStageBytes;
  static constexpr int kStages = kFitting < kMaxStages ? kFitting : kMaxStages;
  static_assert(kStages >= 2 && kCorrected % kStages == 0);
  static constexpr int kWeightsOffset = kStages * Rows::kBytes;
  static constexpr int kScalesOffset = kWeightsOffset + kStages * kStrips * kWeightBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static_assert(Exchange::kBytes <= kRingBytes && kRingBytes % 16 == 0);
  static constexpr int kBarriersOffset = kRingBytes + kCorrections * kCorrectionBytes;
  static constexpr int kBarriers = 2 * kStages + 2 * kCorrections + 1;
  static constexpr int kSharedBytes = kBarriersOffset + kBarriers * 8;
  static_assert(kSharedBytes <= 232448, "an SM has 227 KB");
};

// Where everything is, and what all roles know.
template <class Traits>
struct WidePlace {
  const HopperParams& params;
  const Int4Params& p = params.problem;
  const uint32_t base;
  const int split = blockIdx.x, row_block = blockIdx.y, channel_block = blockIdx.z;

  __device__ __forceinline__ WidePlace(const HopperParams& params, uint32_t base)
      : params(params), base(base) {}

  // The part of the depth that this CTA has, in units.
  __device__ __forceinline__ int first_unit(int split) const {
    return split * p.split_units + min(split, p.longer_splits);
  }
  __device__ __forceinline__ int units() const { return first_unit(split + 1) - first_unit(split); }

  // The first row of x. The last block has rows of the one before again where there are not enough; both store the same.
  __device__ __forceinline__ int first_row() const {
    return min(row_block * Traits::kN, max(p.rows - Traits::kN, 0));
  }

  __device__ __forceinline__ uint32_t barrier(int at) const {
    return base + Traits::kBarriersOffset + at * 8;
  }
  __device__ __forceinline__ uint32_t full(int stage) const { return barrier(stage); }
  __device__ __forceinline__ uint32_t empty(int stage) const {
    return barrier(Traits::kStages + stage);
  }
  // Of the corrections.
  __device__ __forceinline__ uint32_t ready(int at) const {
    return barrier(2 * Traits::kStages + at);
  }
  __device__ __forceinline__ uint32_t done(int at) const {
    return barrier(2 * Traits::kStages + Traits::kCorrections + at);
  }

  __device__ __forceinline__ uint32_t rows_of(int stage) const {
    return base + stage * Traits::Rows::kBytes;
  }
  __device__ __forceinline__ uint32_t weights_of(int stage) const {
    return base + Traits::kWeightsOffset + stage * (Traits::kStrips * Traits::kWeightBytes);
  }
  __device__ __forceinline__ uint32_t scales_of(int stage) const {
    return base + Traits::kScalesOffset + stage * Traits::kScaleBytes;
  }
  __device__ __forceinline__ uint32_t zeros_of(int stage) const {
    return scales_of(stage) + Traits::kChannels * 2;
  }
  __device__ __forceinline__ uint32_t correction(int at) const {
    return base + Traits::kRingBytes + at * Traits::kCorrectionBytes;
  }
  // Operands of a correction: rows of 16 columns as blocks of 8 rows x 16 bytes, two of them next to each other.
  static __device__ __forceinline__ uint64_t descriptor(uint32_t address) {
    constexpr uint64_t kLayout = uint64_t{256 >> 4} << 32 | uint64_t{128 >> 4} << 16;
    return kLayout | ((address & 0x3ffff) >> 4);
  }
  // The two columns of a unit in such a row.
  static __device__ __forceinline__ int column(int unit) {
    const int at = unit % Traits::kCorrected;
    return at / 4 * 128 + at % 4 * 4;
  }
  static __device__ __forceinline__ int row(int row) { return row / 8 * 256 + row % 8 * 16; }

  __device__ __forceinline__ typename Traits::Exchange exchange() const {
    return {base,  barrier(Traits::kBarriers - 1), p.partials ? 1 : p.splits,
            split, p.rows - first_row(),           static_cast<int>(threadIdx.x),
            0};
  }
};

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

// A warp of three: prepares the corrections.
template <class Traits>
struct WideCorrector : WidePlace<Traits> {
  using Place = WidePlace<Traits>;
  using T = typename Traits::T;
  static constexpr int kN = Traits::kN, kStages = Traits::kStages;

  const int lane = threadIdx.x % 32;
  const int warp = shared_by_lanes(threadIdx.x / 32 - Traits::kMultiplying / 32 - 1);  // 0 to 2

  // Pairs of channels of a warp are kPairStep apart; the last 32 are those of the warp that has no rows of x.
  static constexpr int kPairs = Traits::kChannels / 2, kPairStep = 96;
  static constexpr int kEach = kPairs / kPairStep, kMost = kEach + 1;
  static_assert(kPairs == kEach * kPairStep + 32 && kN <= 32);
  __device__ __forceinline__ bool has_rows() const { return warp < kN / 16; }
  __device__ __forceinline__ bool has_pair(int i) const { return i < kEach || warp == 2; }
  static constexpr int pair_offset(int i) {
    return i < kEach ? i * kPairStep : kEach * kPairStep - 2 * 32;
  }

  // In the first stage: zero points and scales of this lane's first pair, and its part of the operands of 16 rows of x. A
  // row's pieces come in the order in which all lanes read other banks, since that of a sum does not matter.
  const uint32_t zeros = this->zeros_of(0) + first_pair() * 2;
  const uint32_t scales = this->scales_of(0) + first_pair() * 4;
  uint32_t rows = this->rows_of(0) + (warp * 16 + lane % 16) * 128 + ((lane / 16 ^ lane % 8) * 16);
  // In a correction: the factors of that pair, the sums of the lane's first row.
  // Row 16 b + 8 h + g of a strip is its channel 16 b + 2 g + h.
  const uint32_t factors = Place::row(first_pair() / 8 * 16 + first_pair() % 8);
  const uint32_t sums = Traits::kFactorBytes + Place::row(warp * 16 + lane / 4);

  __device__ __forceinline__ int first_pair() const { return warp * 32 + lane; }

  __device__ __forceinline__ WideCorrector(const HopperParams& params, uint32_t base)
      : Place(params, base) {
    keep(rows);
  }

  // High and low parts of two numbers, of 8 bits of mantissa each, in a pair of each.
  struct Parts {
    uint32_t high, low;
    __device__ __forceinline__ explicit Parts(float2 numbers) {
      high = pack_floats<__nv_bfloat16>(numbers.x, numbers.y);
      const float2 rounded = RawNibbles<__nv_bfloat16>::to_floats(high);
      low = pack_floats<__nv_bfloat16>(numbers.x - rounded.x, numbers.y - rounded.y);
    }
  };

  // What it needs of a stage, which it then has no more use for.
  struct Operands {
    uint32_t zeros[kMost], scales[kMost], rows[8][4];
  };
  __device__ __forceinline__ void load(Operands& o, int stage) const {
    if (has_rows()) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        load_matrices(o.rows[i], (rows ^ (i / 2 * 32)) + stage * Traits::Rows::kBytes +
                                     i % 2 * Traits::Rows::kPanelBytes);
    }
#pragma unroll
    for (int i = 0; i < kMost; ++i)
      if (has_pair(i)) {
        o.zeros[i] = load_shared_2(zeros + stage * Traits::kScaleBytes + pair_offset(i) * 2);
        o.scales[i] = load_shared_4(scales + stage * Traits::kScaleBytes + pair_offset(i) * 4);
      }
  }

  __device__ __forceinline__ void write_factors(uint32_t to, int i, float2 multiples) const {
    const Parts parts(multiples);
    const uint32_t at = to + factors + Place::row(pair_offset(i) / 8 * 16);
    store_shared_4(at, __byte_perm(parts.high, parts.low, 0x5410));
    store_shared_4(at + Place::row(8), __byte_perm(parts.high, parts.low, 0x7632));
  }
  // The sums of rows g and g + 8 of the warp, in all lanes 4 g + t: products with ones.
  static __device__ __forceinline__ float2 sum_rows(const uint32_t (&rows)[8][4]) {
    float sums[2][4] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i)
      multiply_add<T>(sums[i % 2], rows[i], RawNibbles<T>::kOnes, RawNibbles<T>::kOnes);
    return make_float2(sums[0][0] + sums[1][0], sums[0][2] + sums[1][2]);
  }
  // Negative, so that what comes of it is to be added.
  __device__ __forceinline__ void write_sums(uint32_t to, float2 sum) const {
    const Parts parts(make_float2(-sum.x, -sum.y));
    if (lane % 4 != 0) return;
    const uint32_t at = to + sums;
    store_shared_4(at, __byte_perm(parts.high, 0, 0x1010));
    store_shared_4(at + Place::row(8), __byte_perm(parts.high, 0, 0x3232));
    store_shared_4(at + Traits::kSumBytes, __byte_perm(parts.low, 0, 0x1010));
    store_shared_4(at + Traits::kSumBytes + Place::row(8), __byte_perm(parts.low, 0, 0x3232));
  }

  __device__ __forceinline__ void write_unit(uint32_t to, const Operands& o) const {
#pragma unroll
    for (int i = 0; i < kMost; ++i)
      if (has_pair(i)) write_factors(to, i, Traits::Nibbles::multiples(o.zeros[i], o.scales[i]));
    if (has_rows()) write_sums(to, sum_rows(o.rows));
  }
  // Of a unit that is not there.
  __device__ __forceinline__ void write_nothing(uint32_t to) const {
#pragma unroll
    for (int i = 0; i < kMost; ++i)
      if (has_pair(i)) write_factors(to, i, make_float2(0.0f, 0.0f));
    if (has_rows()) write_sums(to, make_float2(0.0f, 0.0f));
  }

  // The unit that comes in `stage` in a round of all stages, which goes to column `stage` of `to`.
  __device__ __forceinline__ void run_unit(uint32_t to, int stage, int parity, bool valid) const {
    if (!valid) {
      write_nothing(to + Place::column(stage));
      return;
    }
    Operands o;
    mbarrier_wait(this->full(stage), parity);
    load(o, stage);
    __syncwarp();
    mbarrier_arrive_if(this->empty(stage), lane < kWarpArrivals);
    write_unit(to + Place::column(stage), o);
  }

  __device__ __forceinline__ void run() const {
    constexpr int kRounds = Traits::kCorrected / kStages;  // of a correction
    static_assert(kStages == 4);  // a column is one addition from the one a round before
    const int units = this->units();
    for (int chunk = 0; chunk * Traits::kCorrected < units; ++chunk) {
      const int at = chunk % Traits::kCorrections;
      mbarrier_wait(this->done(at), chunk / Traits::kCorrections % 2 ^ 1);
#pragma unroll 1
      for (int round = 0; round < kRounds; ++round) {
        const int left = units - chunk * Traits::kCorrected - round * kStages;
        const uint32_t to = this->correction(at) + Place::column(round * kStages);
#pragma unroll
        for (int stage = 0; stage < kStages; ++stage)
          run_unit(to, stage, (chunk * kRounds + round) % 2, left > stage);
      }
      fence_async_shared();
      __syncwarp();
      mbarrier_arrive_if(this->ready(at), lane < kWarpArrivals);
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
