// The sums of warps and CTAs that share the depth, added up in a fixed order: the warps' through shared memory; then every CTA
// of a cluster owns some of its channels, and the others send what they have of those to its shared memory.
#pragma once

#include "device/mbarrier.cuh"
#include "int4/cluster.cuh"
#include "int4/epilogue.cuh"

namespace jax_baracuda {

// A warp's sums of its kRows x 64 channels lie where its weights lay: 16 rows a stage. A quad is four neighbouring channels
// of a row; those of a CTA go in turn to its threads.
template <int kRows, int kWarpBlocks, int kChannelWarps, int kDepthWarps, int kWarpBytes,
          int kStageBytes>
struct SmallSums {
  static constexpr int kBlocks =
      kWarpBlocks * kChannelWarps;            // of 16 channels, of which an owner has whole ones
  static constexpr int kQuads = kBlocks * 4;  // of a row
  static constexpr int kLogQuads = kQuads == 8 ? 3 : kQuads == 16 ? 4 : kQuads == 32 ? 5 : 6;
  static_assert(kQuads == 1 << kLogQuads);
  static constexpr int kBufferBytes = kRows * kQuads * 16;
  static constexpr int kBytes = kBufferBytes + 16;  // and a barrier
  static constexpr int kWarpChannels = 16 * kWarpBlocks;
  static constexpr int kThreads = 32 * kChannelWarps * kDepthWarps;
  static constexpr int kTurns = (kRows * kQuads + kThreads - 1) / kThreads;
  static_assert((kRows < 16 ? kRows : 16) * kWarpChannels * 4 <= kWarpBytes);

  const Int4Params& p;
  const uint32_t ring, buffer;
  const int split, rows;
  const bool cluster;  // of p.splits CTAs, a power of two and a divisor of kBlocks
  const int shift;     // its logarithm

  __device__ __forceinline__ SmallSums(const Int4Params& p, uint32_t ring, uint32_t buffer,
                                       int split, int first_row)
      : p(p),
        ring(ring),
        buffer(buffer),
        split(split),
        rows(min(p.rows - first_row, kRows)),
        cluster(kHasClusters && p.splits > 1 && !p.partials),
        shift(cluster ? logarithm(p.splits) : 0) {}
  static __device__ __forceinline__ int logarithm(int power) { return 31 - __clz(power); }

  __device__ __forceinline__ uint32_t barrier() const { return buffer + kBufferBytes; }
  // Quads of a row that an owner has.
  __device__ __forceinline__ uint32_t owned() const { return uint32_t{kQuads} >> shift; }

  // At the start of the kernel: tells the cluster that this CTA's shared memory is there, and waits until all of it is.
  __device__ __forceinline__ void begin() const {
    if constexpr (kHasClusters) {
      if (!cluster) return;
      if (threadIdx.x == 0) {
        mbarrier_init(barrier(), 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect(barrier(), (p.splits - 1) * rows * owned() * 16);
      }
      __syncwarp();
      cluster_arrive_relaxed();
      cluster_wait();
    }
  }

  // Two channels of a warp; neighbouring pairs of rows fall in different banks. Of one row to the one eight further on, and
  // from one channel to the one 32 further on, it is the same way for all lanes.
  __device__ __forceinline__ uint32_t place(int warp, int row, int channel) const {
    return ring + row / 16 * kStageBytes + warp * kWarpBytes +
           (row % 16 * kWarpChannels + (channel ^ (row / 2 % 4 * 8))) * 4;
  }

  // The CTA's sum of a quad.
  __device__ __forceinline__ float4 of_warps(int row, int quad) const {
    const int warp = quad * 4 / kWarpChannels, channel = quad * 4 % kWarpChannels;
    float4 sum = load_shared_float4(place(warp, row, channel));
#pragma unroll
    for (int depth = 1; depth < kDepthWarps; ++depth)
      sum = sum + load_shared_float4(place(depth * kChannelWarps + warp, row, channel));
    return sum;
  }

  // Where a CTA gets what another one has of a quad.
  __device__ __forceinline__ uint32_t received(int from, int row, int quad) const {
    return buffer + ((from * kRows + row) * owned() + (quad & (owned() - 1))) * 16;
  }
  // The cluster's sum of a quad that this CTA owns, in the order of the CTAs.
  __device__ __forceinline__ float4 of_cluster(int row, int quad, float4 mine) const {
    float4 sum = split == 0 ? mine : load_shared_float4(received(0, row, quad));
#pragma unroll 1
    for (int from = 1; from < p.splits; ++from)
      sum = sum + (from == split ? mine : load_shared_float4(received(from, row, quad)));
    return sum;
  }

  // What a thread adds up in one of its turns: a quad of a row, or no row that there is. Of CTAs that mostly are part of a
  // cluster, the quads of an owner follow each other, row after row, so that a warp has one owner.
  static constexpr bool kByOwner = kChannelWarps == 1 && kDepthWarps == 8;
  struct Item {
    int row, quad, owner;
  };
  __device__ __forceinline__ Item item(int turn) const {
    const uint32_t at = threadIdx.x + turn * kThreads;
    if constexpr (kByOwner) {
      const uint32_t line = at >> (kLogQuads - shift), owner = line / kRows;
      return {static_cast<int>(at < kRows * kQuads ? line % kRows : kRows),
              static_cast<int>(owner * owned() + (at & (owned() - 1))), static_cast<int>(owner)};
    } else {
      constexpr int kRowStep = kThreads / kQuads;
      static_assert(kThreads % kQuads == 0);
      const int quad = threadIdx.x % kQuads, row = threadIdx.x / kQuads + turn * kRowStep;
      return {row, quad, quad >> (kLogQuads - shift)};
    }
  }

  // Raw: what the numbers of weights are, of which the two channels of a lane have their own factors.
  template <class T, class Raw>
  __device__ __forceinline__ void finish(int first_row, int first_channel) const {
    float4 sums[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const Item i = item(turn);
      if (i.row >= rows) continue;
      sums[turn] = of_warps(i.row, i.quad);
      if (i.owner != split && cluster)
        store_remote(remote_address(received(split, i.row, i.quad), i.owner), sums[turn],
                     remote_address(barrier(), i.owner));
    }
    if (cluster) {
      if constexpr (kHasClusters)
        mbarrier_wait(barrier(), 0);  // no CTA ends while others write to it
      if (!kByOwner && item(0).owner != split) return;
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const Item i = item(turn);
      if (i.row >= rows || (kByOwner && cluster && i.owner != split)) continue;
      const float4 raw = cluster ? of_cluster(i.row, i.quad, sums[turn]) : sums[turn];
      const float4 sum = make_float4(raw.x * Raw::kFirstFactor, raw.y * Raw::kSecondFactor,
                                     raw.z * Raw::kFirstFactor, raw.w * Raw::kSecondFactor);
      store_sum<T>(p, split, first_row + i.row, first_channel + i.quad * 4, sum);
    }
  }
};

}  // namespace jax_baracuda
