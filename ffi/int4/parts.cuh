// Sums of warps and CTAs that share the depth, added up in a fixed order. Every CTA of a cluster owns some of its channels:
// the others write what they have for those to its shared memory.
#pragma once

#include "device/cluster.cuh"
#include "int4/cluster.cuh"
#include "int4/epilogue.cuh"

namespace jax_baracuda {

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
  // Four channels of a row to a place.
  __device__ __forceinline__ void give(uint32_t place, int row, int channel, float4 sum) const {
    const uint32_t at = place + (row * pitch() + channel) * 4;
    if (cluster)
      store_remote(at, sum);
    else
      store_shared_float4(at, sum);
  }
  // Adds up this CTA's channels, of rows from first_row on, and stores them.
  template <class T, int kThreads>
  __device__ __forceinline__ void add_up(int first_row, int first_channel) const {
    static_assert((kBlocks & (kBlocks - 1)) == 0, "a power of two, as the splits are");
    const int quads = blocks * 4, shift = __ffs(quads) - 1, rows = min(p.rows - first_row, kRows);
    const int parts = (cluster ? p.splits : 1) * kWarps;
    if (cluster) first_channel += split * blocks * 16;
#pragma unroll 2
    for (int at = threadIdx.x; at < rows * quads; at += kThreads) {
      const int row = at >> shift, channel = (at & (quads - 1)) * 4;
      const uint32_t from = base + (row * pitch() + channel) * 4;
      float4 sum = load_shared_float4(from);
      for (int part = 1; part < parts; ++part)
        sum = sum + load_shared_float4(from + part * kRows * pitch() * 4);
      store_sum<T>(p, split, first_row + row, first_channel + channel, sum);
    }
  }
};

}  // namespace jax_baracuda
