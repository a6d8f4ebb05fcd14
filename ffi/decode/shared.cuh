// The shared memory of a CTA, and the staging of a row's query heads in it.
#pragma once

#include <cstdint>

#include "decode/config.h"
#include "decode/params.h"
#include "decode/schedule.cuh"
#include "decode/source.cuh"
#include "device/math.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

// [query][each warp's result][each warp's statistics][the CTA's result, for its cluster][ALiBi slopes]
template <class Tile>
struct DecodeShared {
  static constexpr int kQueryUnits = Tile::kHeadTile * Tile::kDimTile / Tile::kChunkElements;
  static constexpr int kRow = Tile::kDimTile + kMergePad;

  uint4* query;         // [slices][kQueryUnits]
  float* out;           // [warps][kHeadTile][kRow]
  float2* stats;        // [warps][kHeadTile]
  float* cluster_out;   // [slices * kHeadTile][kDimTile]
  float* cluster_stats;  // [slices * kHeadTile][2]
  float* slopes;        // [slices * kHeadTile], times log2 e

  __device__ DecodeShared(void* base, const DecodeParams& p) {
    const int heads = p.slices * Tile::kHeadTile;
    query = static_cast<uint4*>(base);
    out = reinterpret_cast<float*>(query + p.slices * kQueryUnits);
    stats = reinterpret_cast<float2*>(out + heads * p.token_warps * kRow);
    cluster_out = reinterpret_cast<float*>(stats + heads * p.token_warps);
    cluster_stats = cluster_out + heads * Tile::kDimTile;
    slopes = cluster_stats + heads * 2;
  }
};

// Brings the row's query heads and their slopes to shared memory; heads past the group become zeros.
template <class Tile>
__device__ __forceinline__ void stage_query(const DecodeParams& p, const Cursor& cursor,
                                            const DecodeShared<Tile>& shared) {
  using Element = typename Tile::Element;
  constexpr unsigned kChunks = Tile::kDimTile / Tile::kChunkElements;
  const int heads = cursor.heads(p);
  const Element* query = static_cast<const Element*>(p.query) + cursor.query_row(p) * p.head_dim;
  const unsigned units = p.slices * Tile::kHeadTile * kChunks;
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < units; i += blockDim.x) {
    const int head = i / kChunks;
    const int chunk = i % kChunks;
    uint4* to = shared.query + (head / Tile::kHeadTile) * DecodeShared<Tile>::kQueryUnits +
                Tile::query_index(head % Tile::kHeadTile, chunk);
    const Element* from = query + head * p.head_dim;
    if constexpr (Tile::kVector) {
      const bool valid = head < heads && chunk * Tile::kChunkElements < p.head_dim;
      copy_async_16(to, valid ? from + chunk * Tile::kChunkElements : query, valid);
    } else {
      *to = load_chunk<false>(from, chunk, p.head_dim, head < heads);
    }
  }
  if (p.alibi_slopes == nullptr) return;
  const float* slopes =
      p.alibi_slopes + cursor.b * p.alibi_batch_stride + cursor.query_head(p);
#pragma unroll 1
  for (int head = threadIdx.x; head < p.slices * Tile::kHeadTile; head += blockDim.x)
    shared.slopes[head] = head < heads ? slopes[head] * kLog2E : 0.0f;
}

}  // namespace jax_baracuda
