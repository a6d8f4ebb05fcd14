// The warpgroup that draws what dropout drops, a block ahead of those that compute.
#pragma once

#include "attention/forward/softmax.cuh"
#include "attention/hopper/traits.cuh"

namespace jax_baracuda {

// A bit for each weight that a thread holds of a block, 16 in each of four floats: they are added up in the mantissa of 2^23,
// on the pipe that has least to do.
struct DroppedWeights {
  float words[4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (float& word : words) word = 8388608.0f;
  }
  __device__ __forceinline__ void draw(int at, uint32_t word, uint32_t threshold) {
    asm("{\n .reg .pred p;\n setp.lt.u32 p, %1, %2;\n @p add.f32 %0, %0, %3;\n}\n"
        : "+f"(words[at / 16])
        : "r"(word), "r"(threshold), "f"(static_cast<float>(1 << at % 16)));
  }
  __device__ __forceinline__ bool holds(int at) const {
    return __float_as_uint(words[at / 16]) >> at % 16 & 1;
  }
};

template <class Traits>
struct Drawer {
  typename Traits::Control& control;
  float2* const drawn;

  __device__ __forceinline__ Drawer(typename Traits::Control& control, unsigned char* shared)
      : control(control), drawn(reinterpret_cast<float2*>(shared + Traits::kBiasOffset)) {}

  // Of a block, 64 keys from j on, for a warp that computes the rows from i on.
  static constexpr int kKeys = 64;
  __device__ __forceinline__ float2 draw(const ScoreModifier& modify, int i, int j) const {
    DroppedWeights dropped;
    dropped.clear();
#pragma unroll
    for (int n = 0; n < kKeys / 8; n += 2)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const uint4 words = modify.dropout_words(i, j + 8 * n + e);
        dropped.draw(4 * n + e, words.x, modify.threshold);
        dropped.draw(4 * n + 4 + e, words.y, modify.threshold);
        dropped.draw(4 * n + 2 + e, words.z, modify.threshold);
        dropped.draw(4 * n + 6 + e, words.w, modify.threshold);
      }
    return make_float2(dropped.words[0], dropped.words[1]);
  }

  __device__ __forceinline__ void run() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    RingPlace<Traits::kStages> place;
    int slot = 0;
    while (true) {
      mbarrier_wait(shared_address(&control.key_full[place.stage]), place.parity);
      const KeyBlock block = control.block[place.stage];
      if (__any_sync(0xffffffffu, block.flags & kNoBlock)) return;
      const auto& tile = control.tile[slot];
      ScoreModifier modify;
      modify.seed = tile.modify.seed;
      modify.head = tile.modify.head;
      modify.batch = tile.modify.batch;
      modify.threshold = tile.modify.threshold;
      const int i = tile.first_row + score_row(0, 0, lane),
                j = block.first_key + score_column(0, 0, lane);
      __syncwarp();
      mbarrier_arrive_warp(shared_address(&control.key_empty[place.stage]));
      mbarrier_wait(shared_address(&control.bias_empty[place.stage]), place.parity ^ 1);
#pragma unroll 1
      for (int rows = warp; rows < Traits::kConsumers / 32; rows += 4) {
        float2* to = drawn + (place.stage * Traits::kConsumers + 32 * rows + lane) * 2;
#pragma unroll 1
        for (int half = 0; half < Traits::kN / kKeys; ++half)
          to[half] = draw(modify, i + 16 * rows, j + kKeys * half);
      }
      __syncwarp();
      mbarrier_arrive_warp(shared_address(&control.bias_full[place.stage]));
      if (block.flags & kLastBlock) slot = (slot + 1) % Traits::Control::kTiles;
      place.next();
    }
  }
};

}  // namespace jax_baracuda
