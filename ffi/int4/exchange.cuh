// Adds up the sums of warpgroups and CTAs that share the depth and store a tile of the output. All of them hold it in the
// same registers, so that adding up needs no coordinates: thread i of one adds what thread i of the others has. A quad is
// four neighbouring registers: two rows of x by two channels. The warpgroups of a CTA take turns with the quads, and so do
// the CTAs of a cluster: the others send their sums to the owner of a quad, whose barrier counts the bytes.
#pragma once

#include "device/cluster.cuh"
#include "device/mbarrier.cuh"
#include "int4/cluster.cuh"
#include "int4/epilogue.cuh"

namespace jax_baracuda {

// A thread has kN / 2 sums; warpgroups lie kChannelGroups next to each other and kDepthGroups behind each other.
template <int kN, int kChannelGroups, int kDepthGroups>
struct SumExchange {
  static constexpr int kQuads = kN / 8;
  static constexpr int kLanes = 128 * kChannelGroups, kThreads = kLanes * kDepthGroups;
  static constexpr int kQuadBytes = kLanes * 16, kPartBytes = kQuads * kQuadBytes;
  static constexpr int kLocalBytes = kDepthGroups * kPartBytes;
  static constexpr int kBytes = kLocalBytes + kPartBytes;
  using Sums = float[kN / 2];

  const uint32_t base,
      barrier;              // of kBytes that are free after the products; an mbarrier of its own
  const int splits, split;  // CTAs of the cluster: a power of two, at most kQuads
  const int rows;           // of x that this tile has
  const int lane, depth_group;  // the thread among kLanes, and the place of its warpgroup in depth

  __device__ __forceinline__ bool cluster() const { return splits > 1; }
  __device__ __forceinline__ bool has_rows(int quad) const { return quad * 8 < rows; }
  __device__ __forceinline__ bool owns(int quad) const { return (quad & (splits - 1)) == split; }
  // Quads of an owner that have rows: every splits-th, from the first on.
  __device__ __forceinline__ int owned(int owner) const {
    return (min((rows + 7) / 8, kQuads) + splits - 1 - owner) >> shift();
  }

  // At the start of the kernel, by one thread.
  __device__ __forceinline__ void init() const {
    if (!cluster()) return;
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(barrier, owned(split) * (splits - 1) * kQuadBytes);
  }

  // Says that this thread reads and writes the ring of its CTA no more. All threads of a CTA that is part of a cluster.
  __device__ __forceinline__ void arrive() const {
    if (cluster()) cluster_arrive_relaxed();
  }
  // What threads without sums do after arrive().
  __device__ __forceinline__ void stand_by() const {
    if (cluster()) cluster_wait();
  }

  // Shared addresses; the quads of an owner lie next to each other.
  __device__ __forceinline__ int shift() const { return 31 - __clz(splits); }
  __device__ __forceinline__ uint32_t part(int owner) const {
    return base + owner * (kPartBytes >> shift());
  }
  __device__ __forceinline__ uint32_t local(int depth, int quad) const {
    return part(quad & (splits - 1)) + depth * kPartBytes + (quad >> shift()) * kQuadBytes +
           lane * 16;
  }
  __device__ __forceinline__ uint32_t received(int from, int quad) const {
    return part(from) + kLocalBytes + (quad >> shift()) * kQuadBytes + lane * 16;
  }

  __device__ __forceinline__ void sync() const { named_barrier_sync(1, kThreads); }

  static __device__ __forceinline__ float4 quad_of(const Sums& sums, int quad) {
    const float* s = sums + quad * 4;
    return make_float4(s[0], s[1], s[2], s[3]);
  }

  __device__ __forceinline__ void write_local(const Sums& sums) const {
    sync();  // the ring is free
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad)
      if (has_rows(quad)) store_shared_float4(local(depth_group, quad), quad_of(sums, quad));
  }

  // The CTA's sum of a quad that lies in the local parts.
  __device__ __forceinline__ float4 fold(int quad) const {
    float4 sum = load_shared_float4(local(0, quad));
#pragma unroll
    for (int depth = 1; depth < kDepthGroups; ++depth)
      sum = sum + load_shared_float4(local(depth, quad));
    return sum;
  }
  // Calls body(quad) for the quads whose turn is this warpgroup's.
  template <class Body>
  __device__ __forceinline__ void for_quads(Body body) const {
#pragma unroll 2
    for (int quad = depth_group; quad < kQuads; quad += kDepthGroups)
      if (has_rows(quad)) body(quad);
  }

  // The CTA's sum of a quad to its owner.
  __device__ __forceinline__ void send(int quad, float4 sum) const {
    const int owner = quad & (splits - 1);
    store_remote(remote_address(received(split, quad), owner), sum, remote_address(barrier, owner));
  }
  // The cluster's sum of a quad that this CTA owns, in the order of the CTAs.
  __device__ __forceinline__ float4 of_cluster(int quad, float4 mine) const {
    float4 sum = {};
#pragma unroll 1
    for (int from = 0; from < splits; ++from)
      sum = sum + (from == split ? mine : load_shared_float4(received(from, quad)));
    return sum;
  }

  // The sums of a cluster of CTAs of one warpgroup in depth.
  template <class Store>
  __device__ __forceinline__ void finish_flat(const Sums& sums, Store store) const {
    cluster_wait();  // the rings of the others are free, and their barriers there
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad)
      if (has_rows(quad) && !owns(quad)) send(quad, quad_of(sums, quad));
    mbarrier_wait(barrier, 0);
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad)
      if (has_rows(quad) && owns(quad)) store(quad, of_cluster(quad, quad_of(sums, quad)));
  }
  // Of several, whose sums lie in the local parts.
  template <class Store>
  __device__ __forceinline__ void finish_deep(Store store) const {
    cluster_wait();
    for_quads([&](int quad) {
      if (!owns(quad)) send(quad, fold(quad));
    });
    for_quads([&](int quad) {
      if (!owns(quad)) return;
      const float4 sum = fold(quad);
      mbarrier_wait(barrier, 0);
      store(quad, of_cluster(quad, sum));
    });
  }

  // After arrive(), by all threads that have sums: store(quad, sum) for every quad that this thread is to store.
  template <class Store>
  __device__ __forceinline__ void finish(const Sums& sums, Store store) const {
    if constexpr (kDepthGroups == 1) {
      if (cluster()) {
        finish_flat(sums, store);
        return;
      }
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad)
        if (has_rows(quad)) store(quad, quad_of(sums, quad));
    } else {
      write_local(sums);
      sync();
      if (cluster())
        finish_deep(store);
      else
        for_quads([&](int quad) { store(quad, fold(quad)); });
    }
  }
};

}  // namespace jax_baracuda
