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
  static constexpr int kHalvesBytes =
      kDepthGroups <= 2 ? kPartBytes * 3 / 2 : kBytes;  // of two CTAs
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
    mbarrier_arrive_expect(barrier,
                           halves() ? kPartBytes / 2 : owned(split) * (splits - 1) * kQuadBytes);
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

  __device__ __forceinline__ bool has_turn() const {
    return depth_group < kQuads && has_rows(depth_group);
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
  template <class Output>
  __device__ __forceinline__ void finish_flat(const Sums& sums, Output output) const {
    cluster_wait();  // the rings of the others are free, and their barriers there
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad)
      if (has_rows(quad) && !owns(quad)) send(quad, quad_of(sums, quad));
    mbarrier_wait(barrier, 0);
    const auto out = output();
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad)
      if (has_rows(quad) && owns(quad)) out.store(quad, of_cluster(quad, quad_of(sums, quad)));
  }
  // Of several, whose sums lie in the local parts.
  template <class Output>
  __device__ __forceinline__ void finish_deep(Output output) const {
    cluster_wait();
    for_quads([&](int quad) {
      if (!owns(quad)) send(quad, fold(quad));
    });
    if (!has_turn()) return;
    const auto out = output();
    for_quads([&](int quad) {
      if (!owns(quad)) return;
      const float4 sum = fold(quad);
      mbarrier_wait(barrier, 0);
      out.store(quad, of_cluster(quad, sum));
    });
  }

  // --- Two that share a sum: each keeps every second quad in its registers, and adds what the other one has of it. ---

  static constexpr int kMine = kQuads / (kDepthGroups == 2 ? 2 : 1);  // after adding up in the CTA
  __device__ __forceinline__ bool halves() const { return kDepthGroups <= 2 && splits == 2; }

  template <int kCount>
  static __device__ __forceinline__ void halve(float4 (&keep)[kCount], float4 (&give)[kCount],
                                               const float4 (&all)[2 * kCount], bool second) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float4 a = all[2 * i], b = all[2 * i + 1];
      keep[i] = second ? b : a;
      give[i] = second ? a : b;
    }
  }
  // A lane's place for quads that `from` passes on, in some part of the ring.
  __device__ __forceinline__ uint32_t passed(int part, int from, int count) const {
    return base + part * kPartBytes + from * (count * kQuadBytes) + lane * 16;
  }

  // Of both depth groups.
  __device__ __forceinline__ void add_local(float4 (&mine)[kMine],
                                            const float4 (&all)[kQuads]) const {
    float4 give[kMine];
    halve(mine, give, all, depth_group == 1);
    sync();  // the ring is free
    const uint32_t to = passed(0, depth_group, kMine), from = passed(0, 1 - depth_group, kMine);
#pragma unroll
    for (int i = 0; i < kMine; ++i) store_shared_float4(to + i * kQuadBytes, give[i]);
    sync();
#pragma unroll
    for (int i = 0; i < kMine; ++i) mine[i] = mine[i] + load_shared_float4(from + i * kQuadBytes);
  }

  // Of both CTAs of a cluster.
  template <int kCount>
  __device__ __forceinline__ void add_remote(float4 (&keep)[kCount],
                                             const float4 (&mine)[2 * kCount]) const {
    float4 give[kCount];
    halve(keep, give, mine, split == 1);
    cluster_wait();  // the other one's ring is free, and its barrier there
    const uint32_t at = passed(1, depth_group, kCount), to = remote_address(at, 1 - split);
    const uint32_t there = remote_address(barrier, 1 - split);
#pragma unroll
    for (int i = 0; i < kCount; ++i) store_remote(to + i * kQuadBytes, give[i], there);
    mbarrier_wait(barrier, 0);
#pragma unroll
    for (int i = 0; i < kCount; ++i) keep[i] = keep[i] + load_shared_float4(at + i * kQuadBytes);
  }

  // Quads first + i * step.
  template <int kCount, class Out>
  __device__ __forceinline__ void store_all(const Out& out, const float4 (&sums)[kCount], int first,
                                            int step) const {
    constexpr int kFours = kCount / 4 * 4;
    if (out.octets) {
#pragma unroll
      for (int i = 0; i < kFours; i += 4)
        if (has_rows(first + i * step)) out.store_four(first + i * step, step, sums + i);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (i >= kFours || !out.octets) out.store(first + i * step, sums[i]);
  }

  template <class Output>
  __device__ __forceinline__ void finish_halves(const Sums& sums, Output output) const {
    float4 all[kQuads], mine[kMine];
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      const float* s = sums + quad * 4;
      all[quad] = make_float4(s[0], s[1], s[2], s[3]);
    }
    if constexpr (kDepthGroups == 2) {
      add_local(mine, all);
    } else {
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad) mine[quad] = all[quad];
    }
    if (!cluster()) {
      store_all(output(), mine, depth_group, kDepthGroups);
      return;
    }
    float4 half[kMine / 2];
    add_remote(half, mine);
    store_all(output(), half, depth_group + kDepthGroups * split, 2 * kDepthGroups);
  }

  // After arrive(), by all threads that have sums: output().store(quad, sum) for every quad that this thread is to store.
  template <class Output>
  __device__ __forceinline__ void finish(const Sums& sums, Output output) const {
    if constexpr (kDepthGroups <= 2) {
      if (!cluster() || halves()) {
        finish_halves(sums, output);
        return;
      }
    }
    if constexpr (kDepthGroups == 1) {
      finish_flat(sums, output);
    } else {
      write_local(sums);
      sync();
      if (cluster()) {
        finish_deep(output);
      } else if (has_turn()) {
        const auto out = output();
        for_quads([&](int quad) { out.store(quad, fold(quad)); });
      }
    }
  }
};

}  // namespace jax_baracuda
