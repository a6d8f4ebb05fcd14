// The sums of warps and CTAs that share the depth, added up in a fixed order: the warps' through shared memory; then every CTA
// of a cluster owns some of its channels, and the others send what they have of those to its shared memory.
#pragma once

#include "device/mbarrier.cuh"
#include "int4/cluster.cuh"
#include "int4/epilogue.cuh"

namespace jax_baracuda {

// A warp's sums of its kRows x 64 channels lie where its weights lay: 16 rows a stage.
template <int kRows, int kChannelWarps, int kDepthWarps, int kWarpBytes, int kStageBytes>
struct SmallSums {
  static constexpr int kBlocks =
      4 * kChannelWarps;  // of 16 channels, of which an owner has whole ones
  static constexpr int kBufferBytes = kRows * kBlocks * 16 * 4;
  static constexpr int kBytes = kBufferBytes + 16;  // and a barrier
  static_assert((kRows < 16 ? kRows : 16) * kStrip * 4 <= kWarpBytes);

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
           (row % 16 * kStrip + (channel ^ (row / 2 % 4 * 8))) * 4;
  }

  // The CTA's sum of two channels.
  __device__ __forceinline__ float2 of_warps(int row, int channel) const {
    float2 sum = {0.0f, 0.0f};
#pragma unroll
    for (int depth = 0; depth < kDepthWarps; ++depth) {
      const float2 part = load_shared_float2(
          place(depth * kChannelWarps + channel / kStrip, row, channel % kStrip));
      sum.x += part.x;
      sum.y += part.y;
    }
    return sum;
  }

  template <class T, int kThreads>
  __device__ __forceinline__ void finish(int first_row, int first_channel) const {
    constexpr int kPairs = kBlocks * 8;
    wait_for_cluster();
    if (cluster) {
      for (int at = threadIdx.x; at < rows * kPairs; at += kThreads) {
        const int row = at / kPairs, channel = at % kPairs * 2, owner = channel / channels;
        if (owner == split) continue;
        const uint32_t to =
            buffer + ((split * rows + row) * channels + channel - owner * channels) * 4;
        store_remote(remote_address(to, owner), of_warps(row, channel),
                     remote_address(barrier(), owner));
      }
    }
    const int begin = cluster ? split * channels : 0, pairs = channels / 2;
    bool waited = !cluster;
    for (int at = threadIdx.x; at < rows * pairs; at += kThreads) {
      const int row = at / pairs, own = (at - row * pairs) * 2, channel = begin + own;
      const float2 mine = of_warps(row, channel);
      float2 sum = mine;
      if (!waited) wait_for_parts();
      waited = true;
      if (cluster) {
        sum = make_float2(0.0f, 0.0f);
        for (int from = 0; from < p.splits; ++from) {
          const float2 part =
              from == split
                  ? mine
                  : load_shared_float2(buffer + ((from * rows + row) * channels + own) * 4);
          sum.x += part.x;
          sum.y += part.y;
        }
      }
      if (!p.partials) {
        store_output<T>(p, first_row + row, first_channel + channel, sum);
      } else if (first_channel + channel < p.strips * kStrip) {
        *reinterpret_cast<float2*>(p.partials +
                                   (static_cast<int64_t>(split) * p.rows + first_row + row) *
                                       p.strips * kStrip +
                                   first_channel + channel) = sum;
      }
    }
    if (!waited) wait_for_parts();  // no CTA ends while others write to it
  }
};

}  // namespace jax_baracuda
