// Adds up partial results, of the warps of a CTA and of the CTAs of a cluster. Always in the same order, so
// that the result is the same bits in every run.
#pragma once

#include <cstdint>

#include "decode/epilogue.cuh"
#include "decode/params.h"
#include "decode/schedule.cuh"
#include "decode/shared.cuh"
#include "device/cluster.cuh"
#include "device/math.cuh"
#include "device/mbarrier.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

struct Destination {
  enum Kind { kOutput, kWorkspace, kCluster } kind;
  int64_t slot;  // of the workspace
};

__device__ __forceinline__ float weight_of(float maximum, float overall) {
  return overall == negative_infinity() ? 0.0f : exp2_approx(maximum - overall);
}

// Four elements of a query head, relative to a maximum.
struct Quad {
  float maximum = negative_infinity();
  float sum = 0.0f;
  float out[4] = {};

  // Adds some parts with their maxima and sums.
  template <int kCount>
  __device__ __forceinline__ void add(const float2 (&stats)[kCount],
                                      const float4 (&parts)[kCount]) {
    float highest = maximum;
#pragma unroll
    for (int i = 0; i < kCount; ++i) highest = fmaxf(highest, stats[i].x);
    const float correction = weight_of(maximum, highest);
    maximum = highest;
    sum *= correction;
#pragma unroll
    for (int e = 0; e < 4; ++e) out[e] *= correction;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float weight = weight_of(stats[i].x, highest);
      sum += weight * stats[i].y;
      out[0] += weight * parts[i].x;
      out[1] += weight * parts[i].y;
      out[2] += weight * parts[i].z;
      out[3] += weight * parts[i].w;
    }
  }
};

// Writes what lies inside the head dim of elements d .. d + 3. `to` is the start of the row.
template <bool Vector, class T>
__device__ __forceinline__ void store_quad(T* to, int d, int head_dim, const float (&out)[4]) {
  if constexpr (Vector) {
    if (d < head_dim) {
      const T elements[4] = {from_float<T>(out[0]), from_float<T>(out[1]), from_float<T>(out[2]),
                             from_float<T>(out[3])};
      store_vector(to + d, elements);
    }
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (d + e < head_dim) to[d + e] = from_float<T>(out[e]);
  }
}

template <class Tile>
__device__ __forceinline__ void write_output(const DecodeParams& p, const Row& row, int head, int d,
                                             const Quad& quad) {
  using Element = typename Tile::Element;
  const int64_t query_row = row.query_row(p) + head;
  const Normalised n = normalise(p, quad.maximum, quad.sum, row.b, row.query_head(p) + head);
  if (d == 0) p.lse[query_row] = n.lse;
  float out[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) out[e] = quad.out[e] * n.factor;
  store_quad<Tile::kVector>(static_cast<Element*>(p.out) + query_row * p.head_dim, d, p.head_dim,
                            out);
}

// Sends quad i of a row to the CTA of the cluster that finishes it.
template <class Tile>
__device__ __forceinline__ void send_quad(const DecodeParams& p, const DecodeShared<Tile>& shared,
                                          unsigned i, const Quad& quad) {
  const unsigned last = p.splits - 1, own = i >> p.cluster_bits, to = i & last;
  const int at = (blockIdx.x & last) * p.cluster_quads + own;
  const uint32_t barrier = shared_address(shared.all_received);
  send_remote(shared_address(shared.received_out + at),
              make_float4(quad.out[0], quad.out[1], quad.out[2], quad.out[3]), barrier, to);
  send_remote(shared_address(shared.received_stats + at), make_float2(quad.maximum, quad.sum),
              barrier, to);
}

// Each thread adds up four elements of one query head over the warps that took different keys.
template <class Tile>
__device__ __forceinline__ void merge_warps(const DecodeParams& p, const Row& row,
                                            const DecodeShared<Tile>& shared, int buffer,
                                            Destination to) {
  constexpr unsigned kQuads = Tile::kDimTile / 4;
  constexpr int kRow = DecodeShared<Tile>::kRow;
  constexpr int kBatch = 4;
  const unsigned units = row.heads(p) * kQuads;
  const int step = p.block_heads;  // from one token warp to the next
  if (to.kind == Destination::kCluster) await_cluster();
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < units; i += blockDim.x) {
    const int head = i / kQuads;
    const int d = i % kQuads * 4;
    const float2* stats = reinterpret_cast<const float2*>(shared.stats + buffer) + head;
    const float4* parts = reinterpret_cast<const float4*>(shared.out + buffer + head * kRow + d);
    Quad quad;
#pragma unroll 1
    for (int first = 0; first < p.token_warps; first += kBatch) {
      float2 own_stats[kBatch];
      float4 own_parts[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const bool valid = first + j < p.token_warps;
        own_stats[j] = valid ? stats[j * step] : make_float2(negative_infinity(), 0.0f);
        own_parts[j] = valid ? parts[j * step * (kRow / 4)] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      }
      quad.add(own_stats, own_parts);
      stats += kBatch * step;
      parts += kBatch * step * (kRow / 4);
    }
    if (to.kind == Destination::kOutput) {
      write_output<Tile>(p, row, head, d, quad);
    } else if (to.kind == Destination::kCluster) {
      send_quad(p, shared, i, quad);
    } else {
      const Partial partial =
          workspace_partial(p, to.slot, first_slot_head(p, row.head_block) + head);
      if (d == 0) {
        partial.stats[0] = quad.maximum;
        partial.stats[1] = quad.sum;
      }
      store_quad<Tile::kVector>(partial.out, d, p.head_dim, quad.out);
    }
  }
}

// Quads of a row that this CTA of a cluster finishes.
template <class Tile>
__device__ __forceinline__ unsigned own_quads(const DecodeParams& p, const Row& row) {
  const unsigned quads = row.heads(p) * (Tile::kDimTile / 4);
  const unsigned last = p.splits - 1;
  return (quads + last - (blockIdx.x & last)) >> p.cluster_bits;
}

// Makes the barrier that counts what is sent to this CTA, and tells the others.
template <class Tile>
__device__ __forceinline__ void enter_cluster(const DecodeParams& p, const Row& row,
                                              const DecodeShared<Tile>& shared) {
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x == 0) {
    const uint32_t barrier = shared_address(shared.all_received);
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(barrier, own_quads<Tile>(p, row) * p.splits * kQuadBytes);
  }
  __syncwarp();
  announce_to_cluster();
#endif
}

// The CTAs of a cluster send each other the quads of one row; each of them finishes its own.
template <class Tile>
__device__ __forceinline__ void merge_cluster(const DecodeParams& p, const Row& row,
                                              const DecodeShared<Tile>& shared) {
  constexpr unsigned kQuads = Tile::kDimTile / 4;
  constexpr int kBatch = 4;
  const int pieces = p.splits;
  const unsigned quads = own_quads<Tile>(p, row);
  // Nobody leaves before all that is sent to it is there: no CTA writes to one that has left.
#if __CUDA_ARCH__ >= 900
  mbarrier_wait(shared_address(shared.all_received), 0);
#endif
#pragma unroll 1
  for (unsigned own = threadIdx.x; own < quads; own += blockDim.x) {
    const unsigned i = own * pieces + (blockIdx.x & (pieces - 1));
    const int d = i % kQuads * 4;
    if (d >= p.head_dim) continue;
    Quad quad;
#pragma unroll 1
    for (int first = 0; first < pieces; first += kBatch) {
      float2 stats[kBatch];
      float4 parts[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const bool valid = first + j < pieces;
        const int at = (first + j) * p.cluster_quads + own;
        stats[j] = valid ? shared.received_stats[at] : make_float2(negative_infinity(), 0.0f);
        parts[j] = valid ? shared.received_out[at] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      }
      quad.add(stats, parts);
    }
    write_output<Tile>(p, row, i / kQuads, d, quad);
  }
}

}  // namespace jax_baracuda
