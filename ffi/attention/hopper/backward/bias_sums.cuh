// The gradient of a bias that all rows share: dS of its keys, summed over the rows. A warp has the sums of its 16 keys in
// registers, as it has dK, and adds them to those of the head in global memory when the head changes and when a tile ends.
// Nobody else adds there, so the order is that of the tile's row blocks.
#pragma once

#include "attention/hopper/backward/scores.cuh"
#include "device/memory.cuh"
#include "device/mma.cuh"

namespace jax_baracuda {

// Two 16-bit ones.
template <class T>
inline constexpr uint32_t kOnes = std::is_same_v<T, __half> ? 0x3c003c00 : 0x3f803f80;

// Nothing but for kernels of calls that want them.
template <class Traits, bool kSums = Traits::kSumsBias>
struct BiasSums {
  __device__ __forceinline__ void begin() {}
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void add(const KeyOperand<Traits>&) {}
  __device__ __forceinline__ void end(const BackwardParams&, const KeyTile&, int, int, int) {}
};

template <class Traits>
struct BiasSums<Traits, true> {
  // Accumulators of products with ones, whose columns are all the same. Where there are registers, of every other 16 rows: then
  // half as many products wait for one another.
  static constexpr int kParts = Traits::kDim < 128 ? 2 : 1;
  float sums[kParts][4];

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (auto& part : sums)
#pragma unroll
      for (float& x : part) x = 0.0f;
  }

  // dS of some of the rows as products take it, keys along the rows.
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void add(const KeyOperand<Traits>& gradients) {
    using T = typename Traits::T;
#pragma unroll
    for (int i = kBegin / 16; i < kEnd / 16; ++i) {
      const uint32_t (&a)[4] = gradients[i];
      mma_16816<T>(sums[i % kParts], a[0], a[1], a[2], a[3], kOnes<T>, kOnes<T>);
    }
  }

  // To the sums of a head, and begins again. `first`: the warp's first key.
  __device__ __forceinline__ void end(const BackwardParams& p, const KeyTile& tile, int head,
                                      int first, int lane) {
    if (lane % 4 == 0) {
      const int64_t pack_head = static_cast<int64_t>(tile.sequence.pack) * p.heads + head;
      float* to = p.bias_sums + pack_head * p.k_rows + tile.k_begin + first;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int key = lane / 4 + 8 * half;
        const float sum = sums[0][2 * half] + (kParts > 1 ? sums[kParts - 1][2 * half] : 0.0f);
        if (first + key < tile.visible.kv_len) add_global_float(to + key, sum);
      }
    }
    begin();
  }
};

}  // namespace jax_baracuda
