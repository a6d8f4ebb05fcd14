// Where a CTA of wide.cuh has everything, and what all of its roles know.
#pragma once

#include "device/memory.cuh"
#include "device/wgmma.cuh"
#include "int4/config.h"
#include "int4/dequantise.cuh"
#include "int4/exchange.cuh"
#include "int4/hopper_params.h"
#include "int4/product.cuh"

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

}  // namespace jax_baracuda
