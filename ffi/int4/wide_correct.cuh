// The warps of wide.cuh that put right what weights without their zero points come to: see WideTraits.
#pragma once

#include "device/fragment.cuh"
#include "device/mbarrier.cuh"
#include "device/memory.cuh"
#include "device/wgmma.cuh"
#include "int4/uniform.cuh"
#include "int4/wide_place.cuh"

namespace jax_baracuda {

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

}  // namespace jax_baracuda
