// Adds up partial results, of the warps of a CTA and of the CTAs of a cluster. Always in the same order, so
// that the result is the same bits in every run.
#pragma once

#include <cstdint>

#include "decode/epilogue.cuh"
#include "decode/params.h"
#include "decode/schedule.cuh"
#include "decode/shared.cuh"
#include "device/cluster.cuh"
#include "device/divide.cuh"
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
  const unsigned own = divide(i, p.cluster_divisor), to = i - own * p.cluster;
  const int at = cluster_rank() * p.cluster_quads + own;
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
  return divide(quads + p.cluster - 1 - cluster_rank(), p.cluster_divisor);
}

// Makes the barrier that counts the `bytes` that are sent to this CTA, and tells the others.
template <class Tile>
__device__ __forceinline__ void enter_cluster(const DecodeShared<Tile>& shared, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x == 0) {
    const uint32_t barrier = shared_address(shared.all_received);
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(barrier, bytes);
  }
  __syncwarp();
  announce_to_cluster();
#endif
}

// What a CTA is sent that is sent one result by every CTA.
template <class Tile>
__device__ __forceinline__ unsigned bytes_by_cta(const DecodeParams& p, const Row& row) {
  return own_quads<Tile>(p, row) * p.cluster * kQuadBytes;
}

// The CTAs of a cluster send each other the quads of one row; each of them finishes its own.
template <class Tile>
__device__ __forceinline__ void merge_cluster(const DecodeParams& p, const Row& row,
                                              const DecodeShared<Tile>& shared) {
  constexpr unsigned kQuads = Tile::kDimTile / 4;
  constexpr int kBatch = 4;
  const int pieces = p.cluster;
  const unsigned quads = own_quads<Tile>(p, row);
  // Nobody leaves before all that is sent to it is there: no CTA writes to one that has left.
#if __CUDA_ARCH__ >= 900
  mbarrier_wait(shared_address(shared.all_received), 0);
#endif
#pragma unroll 1
  for (unsigned own = threadIdx.x; own < quads; own += blockDim.x) {
    const unsigned i = own * pieces + cluster_rank();
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

// What a CTA is sent that is sent one result by every warp, with the statistics of all query heads.
template <class Tile>
__device__ __forceinline__ unsigned bytes_by_warp(const DecodeParams& p, const Row& row) {
  return p.cluster * p.token_warps * (own_quads<Tile>(p, row) * 16 + row.heads(p) * 8);
}

// Sends this warp's result to the CTAs of the cluster: to each one its quads, and the statistics.
template <class Tile>
__device__ __forceinline__ void send_warp(const DecodeParams& p, const Row& row,
                                          const DecodeShared<Tile>& shared, Tile& tile, int warp) {
  const int part = cluster_rank() * p.token_warps + warp;
  const uint32_t barrier = shared_address(shared.all_received);
  const uint32_t out = shared_address(shared.sent_out) + part * p.cluster_quads * 16;
  const uint32_t stats = shared_address(shared.sent_stats) + part * p.block_heads * 8;
  await_cluster();
  tile.hand_out(
      row.heads(p),
      [&](int head, int quarter, float2 statistics) {
        for (int to = quarter; to < p.cluster; to += 4)
          send_remote(stats + head * 8, statistics, barrier, to);
      },
      [&](int head, int d, float4 quad) {
        const unsigned i = head * (Tile::kDimTile / 4) + d / 4;
        const unsigned own = divide(i, p.cluster_divisor);
        send_remote(out + own * 16, quad, barrier, i - own * p.cluster);
      });
}

// Adds up what the warps of the cluster have sent: `p.quad_lanes` lanes share a quad.
template <class Tile>
__device__ __forceinline__ void merge_sent(const DecodeParams& p, const Row& row,
                                           const DecodeShared<Tile>& shared) {
  constexpr unsigned kQuads = Tile::kDimTile / 4;
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kBatch = 4;
  const unsigned lanes = p.quad_lanes, lane = threadIdx.x & (lanes - 1);
  const unsigned parts = p.cluster * p.token_warps, quads = own_quads<Tile>(p, row);
  // Nobody leaves before all that is sent to it is there: no CTA writes to one that has left.
#if __CUDA_ARCH__ >= 900
  mbarrier_wait(shared_address(shared.all_received), 0);
#endif
#pragma unroll 1
  for (unsigned begin = 0; begin < quads; begin += blockDim.x / lanes) {
    const unsigned own = begin + threadIdx.x / lanes;
    const unsigned i = own * p.cluster + cluster_rank();
    const int head = i / kQuads;
    Quad quad;
#pragma unroll 1
    for (unsigned first = lane; first < parts; first += kBatch * lanes) {
      float2 stats[kBatch];
      float4 out[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const unsigned part = first + j * lanes;
        const bool valid = part < parts && own < quads;
        stats[j] = valid ? shared.sent_stats[part * p.block_heads + head]
                         : make_float2(negative_infinity(), 0.0f);
        out[j] = valid ? shared.sent_out[part * p.cluster_quads + own]
                       : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      }
      quad.add(stats, out);
    }
    float overall = quad.maximum;
    for (unsigned offset = 1; offset < lanes; offset *= 2)
      overall = fmaxf(overall, __shfl_xor_sync(kAll, overall, offset));
    const float weight = weight_of(quad.maximum, overall);
    quad.maximum = overall;
    quad.sum *= weight;
#pragma unroll
    for (int e = 0; e < 4; ++e) quad.out[e] *= weight;
    for (unsigned offset = 1; offset < lanes; offset *= 2) {
      quad.sum += __shfl_xor_sync(kAll, quad.sum, offset);
#pragma unroll
      for (int e = 0; e < 4; ++e) quad.out[e] += __shfl_xor_sync(kAll, quad.out[e], offset);
    }
    if (lane == 0 && own < quads) write_output<Tile>(p, row, head, i % kQuads * 4, quad);
  }
}

}  // namespace jax_baracuda
