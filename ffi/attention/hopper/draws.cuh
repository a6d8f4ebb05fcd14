// Warps that draw for dropout, a block ahead of those who compute: masks of pairs of weights, in shared memory.
#pragma once

#include "attention/forward/softmax.cuh"
#include "attention/hopper/logits.cuh"
#include "attention/hopper/traits.cuh"

namespace jax_baracuda {

template <class Traits>
struct DropoutDrawer {
  static constexpr int kWarps = Traits::kConsumers / 32, kPairs = Traits::kN / 16;

  typename Traits::Control& control;
  uint32_t masks;
  int helper, lane;

  RingPlace<Traits::kStages> place;
  int tile_slot = 0;

  // helper: which of the warps, from 0.
  __device__ __forceinline__ DropoutDrawer(typename Traits::Control& control, uint32_t shared,
                                           int helper, int lane)
      : control(control), masks(shared + Traits::kBiasOffset), helper(helper), lane(lane) {}

  __device__ __forceinline__ void run() {
    while (true) {
      mbarrier_wait(shared_address(&control.record_full[place.stage]), place.parity);
      const KeyBlock block = control.block[place.stage];
      if (__any_sync(0xffffffffu, block.flags & kNoBlock)) return;
      const auto& tile = control.tile[tile_slot];
      const ScoreModifier modify = tile.modify;
      const int first_row = tile.first_row;
      __syncwarp();
      mbarrier_arrive_warp(shared_address(&control.key_empty[place.stage]));
      mbarrier_wait(shared_address(&control.bias_empty[place.stage]), place.parity ^ 1);
      for (int warp = helper; warp < kWarps; warp += Traits::kHelpers)
        draw(modify, warp, first_row + 16 * warp, block.first_key);
      __syncwarp();
      mbarrier_arrive_warp(shared_address(&control.bias_full[place.stage]));
      place.next();
      if (block.flags & kLastBlock) tile_slot = (tile_slot + 1) % Traits::Control::kTiles;
    }
  }

  // For the warp with rows from i0: a lane's masks of 16 keys are 16 bytes.
  __device__ __forceinline__ void draw(const ScoreModifier& modify, int warp, int i0,
                                       int j0) const {
    const uint32_t thresholds = modify.threshold * 0x10001;
    const uint32_t to = masks + place.stage * Traits::kBiasBytes + (warp * kPairs * 32 + lane) * 16;
#pragma unroll 4
    for (int n = 0; n < kPairs; ++n) {
      const uint4 words =
          modify.dropout_words(i0 + score_row(0, 0, lane), j0 + score_column(2 * n, 0, lane));
      store_shared_16(
          to + n * 32 * 16,
          make_uint4(kept_halves(words.x, thresholds), kept_halves(words.y, thresholds),
                     kept_halves(words.z, thresholds), kept_halves(words.w, thresholds)));
    }
  }
};

}  // namespace jax_baracuda
