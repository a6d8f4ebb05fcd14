// Adds up partial results: of the warps of a CTA, and of the CTAs of a cluster. Always in the same order,
// so that the result is the same bits in every run.
#pragma once

#include <cstdint>

#include "decode/epilogue.cuh"
#include "decode/params.h"
#include "decode/schedule.cuh"
#include "decode/shared.cuh"
#include "device/cluster.cuh"
#include "device/math.cuh"

namespace jax_baracuda {

struct Destination {
  enum Kind { kOutput, kWorkspace, kShared } kind;
  int64_t slot;  // of the workspace
};

__device__ __forceinline__ float weight_of(float maximum, float overall) {
  return overall == negative_infinity() ? 0.0f : exp2_approx(maximum - overall);
}

// Each thread adds up four elements of one query head over the warps that took different keys.
template <class Tile>
__device__ __forceinline__ void merge_warps(const DecodeParams& p, const Cursor& cursor,
                                            const DecodeShared<Tile>& shared, Destination to) {
  using Element = typename Tile::Element;
  constexpr unsigned kQuads = Tile::kDimTile / 4;
  constexpr int kRow = DecodeShared<Tile>::kRow;
  const unsigned units = cursor.heads(p) * kQuads;
  const int step = p.slices * Tile::kHeadTile;  // from one token warp to the next
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < units; i += blockDim.x) {
    const int head = i / kQuads;
    const int d = i % kQuads * 4;
    float maximum = negative_infinity();
#pragma unroll 4
    for (int w = 0; w < p.token_warps; ++w)
      maximum = fmaxf(maximum, shared.stats[head + w * step].x);
    float sum = 0.0f;
    float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (int w = 0; w < p.token_warps; ++w) {
      const float2 stats = shared.stats[head + w * step];
      const float4 out =
          *reinterpret_cast<const float4*>(shared.out + (head + w * step) * kRow + d);
      const float weight = weight_of(stats.x, maximum);
      sum += weight * stats.y;
      total.x += weight * out.x;
      total.y += weight * out.y;
      total.z += weight * out.z;
      total.w += weight * out.w;
    }
    const float elements[4] = {total.x, total.y, total.z, total.w};
    if (to.kind == Destination::kOutput) {
      const int64_t query_row = cursor.query_row(p) + head;
      const Normalised n = normalise(p, maximum, sum, cursor.b, cursor.query_head(p) + head);
      if (d == 0) p.lse[query_row] = n.lse;
      Element* out = static_cast<Element*>(p.out) + query_row * p.head_dim + d;
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (d + e < p.head_dim) out[e] = from_float<Element>(elements[e] * n.factor);
    } else {
      const Partial partial =
          to.kind == Destination::kShared
              ? Partial{shared.cluster_out + head * Tile::kDimTile, shared.cluster_stats + 2 * head}
              : workspace_partial(p, to.slot, first_slot_head(p, cursor.head_block) + head);
      if (d == 0) {
        partial.stats[0] = maximum;
        partial.stats[1] = sum;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (d + e < p.head_dim) partial.out[d + e] = elements[e];
    }
  }
}

// The CTAs of a cluster hold the pieces of one row in their shared memory; each of them finishes a share
// of the row's elements.
template <class Tile>
__device__ __forceinline__ void merge_cluster(const DecodeParams& p, const Cursor& cursor,
                                              const DecodeShared<Tile>& shared) {
  using Element = typename Tile::Element;
  const int pieces = p.splits;
  const unsigned rank = blockIdx.x % static_cast<unsigned>(pieces);
  cluster_sync();
  const int units = cursor.heads(p) * Tile::kDimTile;
#pragma unroll 1
  for (int i = threadIdx.x * pieces + rank; i < units; i += blockDim.x * pieces) {
    const int head = i / Tile::kDimTile;
    const int d = i % Tile::kDimTile;
    if (d >= p.head_dim) continue;
    const uint32_t stats = shared_address(shared.cluster_stats + 2 * head);
    const uint32_t out = shared_address(shared.cluster_out + i);
    float maximum = negative_infinity();
#pragma unroll 4
    for (int piece = 0; piece < pieces; ++piece)
      maximum = fmaxf(maximum, load_remote(stats, piece));
    float sum = 0.0f;
    float total = 0.0f;
#pragma unroll 4
    for (int piece = 0; piece < pieces; ++piece) {
      const float weight = weight_of(load_remote(stats, piece), maximum);
      sum += weight * load_remote(stats + 4, piece);
      total += weight * load_remote(out, piece);
    }
    const int64_t query_row = cursor.query_row(p) + head;
    const Normalised n = normalise(p, maximum, sum, cursor.b, cursor.query_head(p) + head);
    if (d == 0) p.lse[query_row] = n.lse;
    static_cast<Element*>(p.out)[query_row * p.head_dim + d] =
        from_float<Element>(total * n.factor);
  }
  cluster_sync();  // nobody leaves while others read its shared memory
}

}  // namespace jax_baracuda
