// The sums of warps and CTAs that share the depth, added up in a fixed order: the warps' through shared memory; then every CTA
// of a cluster owns some of its channels, and the others send what they have of those to its shared memory.
#pragma once

#include "device/mbarrier.cuh"
#include "int4/cluster.cuh"
#include "int4/epilogue.cuh"

namespace jax_baracuda {

// A warp's sums of its kRows x 64 channels lie where its weights lay: 16 rows a stage.
template <int kRows, int kWarpBlocks, int kChannelWarps, int kDepthWarps, int kWarpBytes,
          int kStageBytes>
struct SmallSums {
  static constexpr int kBlocks =
      kWarpBlocks * kChannelWarps;  // of 16 channels, of which an owner has whole ones
  static constexpr int kBufferBytes = kRows * kBlocks * 16 * 4;
  static constexpr int kBytes = kBufferBytes + 16;  // and a barrier
  static constexpr int kWarpChannels = 16 * kWarpBlocks;
  static_assert((kRows < 16 ? kRows : 16) * kWarpChannels * 4 <= kWarpBytes);

  const Int4Params& p;
  const uint32_t ring, buffer;
  const int split, rows;
  const bool cluster;  // of p.splits CTAs, a divisor of kBlocks
  const int channels;  // that an owner has

  __device__ __forceinline__ SmallSums(const Int4Params& p, uint32_t ring, uint32_t buffer,
                                       int split, int first_row)
      : p(p),
        ring(ring),
        buffer(buffer),
        split(split),
        rows(min(p.rows - first_row, kRows)),
        cluster(kHasClusters && p.splits > 1 && !p.partials),
        channels((cluster ? kBlocks / p.splits : kBlocks) * 16) {}

  __device__ __forceinline__ uint32_t barrier() const { return buffer + kBufferBytes; }

  // At the start of the kernel: tells the cluster that this CTA's shared memory is there.
  __device__ __forceinline__ void begin() const {
    if constexpr (kHasClusters) {
      if (!cluster) return;
      if (threadIdx.x == 0) {
        mbarrier_init(barrier(), 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect(barrier(), (p.splits - 1) * rows * channels * 4);
      }
      __syncwarp();
      cluster_arrive_relaxed();
    }
  }
  __device__ __forceinline__ void wait_for_cluster() const {
    if (cluster) cluster_wait();
  }
  __device__ __forceinline__ void wait_for_parts() const {
    if constexpr (kHasClusters) mbarrier_wait(barrier(), 0);
  }

  // Two channels of a warp; neighbouring pairs of rows fall in different banks.
  __device__ __forceinline__ uint32_t place(int warp, int row, int channel) const {
    return ring + row / 16 * kStageBytes + warp * kWarpBytes +
           (row % 16 * kWarpChannels + (channel ^ (row / 2 % 4 * 8))) * 4;
  }

  // The CTA's sum of four channels.
  __device__ __forceinline__ float4 of_warps(int row, int channel) const {
    float4 sum = {};
#pragma unroll
    for (int depth = 0; depth < kDepthWarps; ++depth)
      sum = sum + load_shared_float4(place(depth * kChannelWarps + channel / kWarpChannels, row,
                                           channel % kWarpChannels));
    return sum;
  }

  template <class T, int kThreads>
  __device__ __forceinline__ void finish(int first_row, int first_channel) const {
    constexpr int kQuads = kBlocks * 4;
    wait_for_cluster();
    if (cluster) {
      for (int at = threadIdx.x; at < rows * kQuads; at += kThreads) {
        const int row = at / kQuads, channel = at % kQuads * 4, owner = channel / channels;
        if (owner == split) continue;
        const uint32_t to =
            buffer + ((split * rows + row) * channels + channel - owner * channels) * 4;
        store_remote(remote_address(to, owner), of_warps(row, channel),
                     remote_address(barrier(), owner));
      }
    }
    const int begin = cluster ? split * channels : 0, quads = channels / 4;
    bool waited = !cluster;
    for (int at = threadIdx.x; at < rows * quads; at += kThreads) {
      const int row = at / quads, own = (at - row * quads) * 4;
      const float4 mine = of_warps(row, begin + own);
      if (!waited) wait_for_parts();
      waited = true;
      float4 sum = cluster ? float4{} : mine;
      for (int from = 0; from < (cluster ? p.splits : 0); ++from)
        sum = sum + (from == split
                         ? mine
                         : load_shared_float4(buffer + ((from * rows + row) * channels + own) * 4));
      store_sum<T>(p, split, first_row + row, first_channel + begin + own, sum);
    }
    if (!waited) wait_for_parts();  // no CTA ends while others write to it
  }
};

}  // namespace jax_baracuda
