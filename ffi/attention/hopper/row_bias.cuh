// The warp that brings a bias which all rows share, whatever its elements, block by block to shared memory: as float32 numbers
// over the scale, one a key.
#pragma once

#include "attention/hopper/traits.cuh"

namespace jax_baracuda {

template <class Traits>
struct RowBiasLoader {
  static constexpr int kKeys = Traits::kN / 32;  // of a lane

  const AttentionProblem& p;
  typename Traits::Control& control;
  uint32_t to;
  int lane;

  RingPlace<Traits::kStages> place;
  int tile_slot = 0;

  __device__ __forceinline__ RowBiasLoader(const HopperForwardParams& params,
                                           typename Traits::Control& control, uint32_t shared,
                                           int lane)
      : p(params.problem), control(control), to(shared + Traits::kBiasOffset), lane(lane) {}

  // Learns of the blocks as the consumers do, who give a block's keys back when they have added its bias: there is no other
  // barrier for the buffer.
  __device__ __forceinline__ void run() {
    while (true) {
      mbarrier_wait(shared_address(&control.key_full[place.stage]), place.parity);
      const KeyBlock block = control.block[place.stage];
      if (__any_sync(0xffffffffu, block.flags & kNoBlock)) return;
      const auto& tile = control.tile[tile_slot];
      store(block.first_key, tile.sequence.index, tile.head);
      __syncwarp();
      mbarrier_arrive_warp(shared_address(&control.bias_full[place.stage]));
      mbarrier_arrive_warp(shared_address(&control.key_empty[place.stage]));
      place.next();
      if (block.flags & kLastBlock) tile_slot = (tile_slot + 1) % Traits::Control::kTiles;
    }
  }

  __device__ __forceinline__ void store(int first_key, int sequence, int head) const {
    const AttentionBias& bias = p.bias;
    const int64_t row = sequence * bias.sequence_stride + head * bias.head_stride;
    switch (bias.type) {
      case BiasType::kF16:
        return store_as(first_key, static_cast<const __half*>(bias.data) + row,
                        [](__half x) { return __half2float(x); });
      case BiasType::kBF16:
        return store_as(first_key, static_cast<const __nv_bfloat16*>(bias.data) + row,
                        [](__nv_bfloat16 x) { return __bfloat162float(x); });
      case BiasType::kF32:
        return store_as(first_key, static_cast<const float*>(bias.data) + row,
                        [](float x) { return x; });
      default:
        return store_as(first_key, static_cast<const uint8_t*>(bias.data) + row,
                        [](uint8_t x) { return x ? 0.0f : negative_infinity(); });
    }
  }
  template <class Element, class Convert>
  __device__ __forceinline__ void store_as(int first_key, const Element* row,
                                           Convert convert) const {
    const float factor = 1.0f / p.scale;
    Element x[kKeys];
#pragma unroll
    for (int i = 0; i < kKeys; ++i) {
      const int key = first_key + 32 * i + lane;
      x[i] = key < p.bias.keys ? row[key] : Element();
    }
#pragma unroll
    for (int i = 0; i < kKeys; ++i)
      store_shared_4(to + place.stage * Traits::kBiasBytes + (32 * i + lane) * 4,
                     __float_as_uint(convert(x[i]) * factor));
  }
};

}  // namespace jax_baracuda
