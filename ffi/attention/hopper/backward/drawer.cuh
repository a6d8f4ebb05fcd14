// Warps of the loading warpgroup that draw what dropout keeps, a bit a weight, while the consumers are at work on the row blocks
// before.
#pragma once

#include "attention/hopper/backward/option.cuh"
#include "device/mbarrier.cuh"

namespace jax_baracuda {

inline constexpr int kDrawers = 3;  // warps

// 64 rows of a consumer warp's 16 keys are a word a lane, 16 rows of them a byte. Of the byte the highest bit is of the first
// pair of rows and its even row, the next one of its odd row, and so on.
template <class Traits>
struct DropoutDrawer {
  static constexpr int kUnits = Traits::kRows / 16, kWarps = Traits::kConsumers / 32;

  const BackwardParams& p;
  typename Traits::Control& control;
  const uint32_t shared;
  const int index, lane;

  static __device__ __forceinline__ uint32_t byte_of(const ScoreModifier& modify, int row,
                                                     int key) {
    const DropoutPairs pairs(modify, row, key);
    const uint32_t thresholds = modify.threshold * 0x10001;
    uint32_t bits = 0;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair)
      bits |= kept_halves(pairs.at[pair / 2][pair % 2], thresholds) & (0x00400080u >> 2 * pair);
    return bits | bits >> 16;
  }

  __device__ __forceinline__ void draw(int stage) const {
    const RowBlock& block = control.block[stage];
    const DrawnKeys& keys = control.draw[stage];
    Sequence sequence;
    sequence.index = keys.sequence;
    ScoreModifier modify;
    modify.set_dropout(p, sequence, block.head);
    const int row = block.first_row + 2 * (lane % 4), key = keys.first_key + lane / 4;
    const uint32_t to = shared + Traits::kDrawnOffset + stage * Traits::kDrawnBytes + lane * 4;
#pragma unroll 1
    for (int at = index; at < kUnits * kWarps; at += kDrawers) {
      const int i = at % kUnits, warp = at / kUnits;
      const uint32_t byte = byte_of(modify, row + 16 * i, key + 16 * warp);
      asm volatile("st.shared.u8 [%0], %1;\n" ::"r"(to + (i / 4 * kWarps + warp) * 128 + i % 4),
                   "r"(byte)
                   : "memory");
    }
  }

  __device__ __forceinline__ void run() const {
    RingPlace<Traits::kQueryStages> place;
#pragma unroll 1
    for (;; place.next()) {
      mbarrier_wait(shared_address(&control.query_full[place.stage]), place.parity);
      if (__any_sync(0xffffffffu, control.block[place.stage].flags & kNoRows)) return;
      draw(place.stage);
      __syncwarp();
      if (lane < kWarpArrivals) mbarrier_arrive(shared_address(&control.drawn[place.stage]));
    }
  }
};

template <class Traits>
__device__ __forceinline__ void draw_dropout(const BackwardParams& p,
                                             typename Traits::Control& control, uint32_t shared,
                                             int index) {
  if constexpr (Traits::kDrawer)
    DropoutDrawer<Traits>{p, control, shared, index, static_cast<int>(threadIdx.x % 32)}.run();
}

// What a consumer's lane has of them.
template <class Traits>
struct DrawnMasks {
  uint32_t words[Traits::kRows / 64];

  // `at`: shared address of the lane's first word.
  __device__ __forceinline__ void load(uint32_t at) {
#pragma unroll
    for (int i = 0; i < Traits::kRows / 64; ++i)
      asm volatile("ld.shared.u32 %0, [%1];\n"
                   : "=r"(words[i])
                   : "r"(at + i * (Traits::kConsumers * 4))
                   : "memory");
  }
  // All ones in the halves that are kept of a pair of rows 16i .. 16i + 15: the signs of two bytes.
  __device__ __forceinline__ uint32_t of(int i, int pair) const {
    const uint32_t even = words[i / 4] << 2 * pair, odd = even << 1;
    uint32_t mask;
    asm("prmt.b32 %0, %1, %2, %3;\n"
        : "=r"(mask)
        : "r"(even), "r"(odd), "r"(0xcc88 + i % 4 * 0x1111));
    return mask;
  }
};

}  // namespace jax_baracuda
