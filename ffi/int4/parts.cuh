// Sums of warps and CTAs that share the depth, added up in a fixed order. Every CTA of a cluster owns some of its channels:
// the others write what they have for those to its shared memory.
#pragma once

#include "device/cluster.cuh"
#include "int4/cluster.cuh"
#include "int4/epilogue.cuh"

namespace jax_baracuda {

__device__ __forceinline__ void store_remote_float2(uint32_t address, float2 v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};\n" ::"r"(address), "f"(v.x), "f"(v.y)
               : "memory");
#endif
}

// kWarps of a CTA share the depth.
template <int kRows, int kChannels, int kWarps>
struct PartialSums {
  static constexpr int kBlocks = kChannels / 16;  // an owner has whole blocks of 16 channels
  static constexpr int kPad = 4;  // floats between rows, so that rows fall in different banks
  static constexpr int kBytes = kWarps * kRows * (kChannels + kBlocks * kPad) * 4;

  const Int4Params& p;
  const uint32_t base;
  const int split;
  const bool cluster;  // of p.splits CTAs, a divisor of kBlocks
  const int blocks;    // that an owner has

  __device__ __forceinline__ PartialSums(const Int4Params& p, uint32_t base, int split)
      : p(p),
        base(base),
        split(split),
        cluster(p.splits > 1 && !p.partials),
        blocks(cluster ? kBlocks / p.splits : kBlocks) {}

  __device__ __forceinline__ int pitch() const { return blocks * 16 + kPad; }

  // Where the sums of a warp for a block of 16 channels go.
  __device__ __forceinline__ uint32_t place(int warp, int block) const {
    const int owner = block / blocks, part = (cluster ? split : 0) * kWarps + warp;
    const uint32_t at = base + (part * kRows * pitch() + (block - owner * blocks) * 16) * 4;
    return cluster ? remote_address(at, owner) : at;
  }
  // Two channels of a row to a place.
  __device__ __forceinline__ void give(uint32_t place, int row, int channel, float2 sum) const {
    const uint32_t at = place + (row * pitch() + channel) * 4;
    if (cluster)
      store_remote_float2(at, sum);
    else
      store_shared_float2(at, sum);
  }
  // Adds up this CTA's channels, of rows from first_row on, and stores them.
  template <class T, int kThreads>
  __device__ __forceinline__ void add_up(int first_row, int first_channel) const {
    const int pairs = blocks * 8, rows = min(p.rows - first_row, kRows);
    const int parts = (cluster ? p.splits : 1) * kWarps;
    for (int at = threadIdx.x; at < rows * pairs; at += kThreads) {
      const int row = at / pairs, pair = at - row * pairs;
      const uint32_t from = base + (row * pitch() + pair * 2) * 4;
      float2 sum = {0.0f, 0.0f};
#pragma unroll 8
      for (int part = 0; part < parts; ++part) {
        const float2 other = load_shared_float2(from + part * kRows * pitch() * 4);
        sum.x += other.x;
        sum.y += other.y;
      }
      const int channel = first_channel + (cluster ? split : 0) * blocks * 16 + pair * 2;
      if (p.partials) {
        const int width = p.strips * kStrip;
        if (channel < width)
          *reinterpret_cast<float2*>(
              p.partials + (static_cast<int64_t>(split) * p.rows + first_row + row) * width +
              channel) = sum;
      } else {
        store_output<T>(p, first_row + row, channel, sum);
      }
    }
  }
};

}  // namespace jax_baracuda
