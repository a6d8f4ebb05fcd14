// Sums of warpgroups and CTAs that share the depth, added up in a fixed order.
//
// All of them hold a tile of the output in the same registers, so that a sum needs no coordinates: thread i of one adds
// what thread i of the others has. A quad is four neighbouring registers: two rows of x by two channels. The warpgroups
// of a CTA take turns with the quads, and so do the CTAs of a cluster: the owner of a quad gets the others' sums by
// st.async, counted by its barrier.
#pragma once

#include "device/cluster.cuh"
#include "device/mbarrier.cuh"
#include "int4/cluster.cuh"
#include "int4/epilogue.cuh"

namespace jax_baracuda {

// A thread has kStrips x kN / 2 sums; warpgroups lie kChannelGroups next to each other and kDepthGroups behind each other.
template <int kStrips, int kN, int kChannelGroups, int kDepthGroups>
struct SumExchange {
  static constexpr int kRowQuads = kN / 8, kQuads = kStrips * kRowQuads;
  static constexpr int kLanes = 128 * kChannelGroups;
  static constexpr int kPartBytes = kQuads * kLanes * 16;
  static constexpr int kLocalBytes = kDepthGroups > 1 ? kDepthGroups * kPartBytes : 0;
  static constexpr int kBytes = kLocalBytes + kPartBytes;
  using Sums = float[kStrips][kN / 2];

  const uint32_t base,
      barrier;              // of kBytes that are free after the products; an mbarrier of its own
  const int splits, split;  // CTAs of the cluster: a power of two, at most kQuads
  const int rows;           // of x that this tile has
  const int lane, depth_group;  // the thread among kLanes, and the place of its warpgroup in depth

  __device__ __forceinline__ bool cluster() const { return splits > 1; }
  __device__ __forceinline__ bool has_rows(int quad) const { return quad % kRowQuads * 8 < rows; }
  __device__ __forceinline__ int owner(int quad) const { return quad & (splits - 1); }

  // At the start of the kernel, by one thread.
  __device__ __forceinline__ void init() const {
    if (!cluster()) return;
    int quads = 0;
    for (int quad = split; quad < kQuads; quad += splits) quads += has_rows(quad);
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(barrier, quads * (splits - 1) * kLanes * 16);
  }

  // Says that this thread reads and writes the ring of its CTA no more. All threads of a CTA that is part of a cluster.
  __device__ __forceinline__ void arrive() const {
    if (cluster()) cluster_arrive_relaxed();
  }
  __device__ __forceinline__ void wait_for_cluster() const {
    if (cluster()) cluster_wait();
  }

  __device__ __forceinline__ uint32_t local(int depth, int quad) const {
    return base + ((depth * kQuads + quad) * kLanes + lane) * 16;
  }
  __device__ __forceinline__ uint32_t remote(int from, int quad) const {
    return base + kLocalBytes + ((from * (kQuads / splits) + quad / splits) * kLanes + lane) * 16;
  }

  // body(quad, the CTA's sum of it) for the quads whose turn is this warpgroup's.
  template <class Body>
  __device__ __forceinline__ void for_quads(const Sums& sums, Body body) const {
    if constexpr (kDepthGroups == 1) {
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad) {
        const float* s = sums[quad / kRowQuads] + quad % kRowQuads * 4;
        if (has_rows(quad)) body(quad, make_float4(s[0], s[1], s[2], s[3]));
      }
    } else {
#pragma unroll 1
      for (int quad = depth_group; quad < kQuads; quad += kDepthGroups) {
        if (!has_rows(quad)) continue;
        float4 sum = load_shared_float4(local(0, quad));
#pragma unroll
        for (int depth = 1; depth < kDepthGroups; ++depth)
          sum = sum + load_shared_float4(local(depth, quad));
        body(quad, sum);
      }
    }
  }

  // After arrive(), by all threads that have sums: store(quad, sum) for every quad that this thread is to store.
  template <class Store>
  __device__ __forceinline__ void finish(const Sums& sums, Store store) const {
    if constexpr (kDepthGroups > 1) {
      constexpr int kThreads = kLanes * kDepthGroups;
      named_barrier_sync(1, kThreads);  // the ring is free
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad) {
        const float* s = sums[quad / kRowQuads] + quad % kRowQuads * 4;
        if (has_rows(quad))
          store_shared_float4(local(depth_group, quad), make_float4(s[0], s[1], s[2], s[3]));
      }
      named_barrier_sync(1, kThreads);
    }
    if (!cluster()) {
      for_quads(sums, store);
      return;
    }
    wait_for_cluster();  // the rings of the others are free, and their barriers there
    for_quads(sums, [&](int quad, float4 sum) {
      if (owner(quad) != split)
        store_remote(remote_address(remote(split, quad), owner(quad)), sum,
                     remote_address(barrier, owner(quad)));
    });
    mbarrier_wait(barrier,
                  0);  // also where this thread owns none: no CTA ends while others write to it
    for_quads(sums, [&](int quad, float4 mine) {
      if (owner(quad) != split) return;
      float4 sum = {};
#pragma unroll 1
      for (int from = 0; from < splits; ++from)
        sum = sum + (from == split ? mine : load_shared_float4(remote(from, quad)));
      store(quad, sum);
    });
  }
};

}  // namespace jax_baracuda
