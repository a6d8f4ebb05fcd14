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

// [query][each warp's result][its statistics][the CTA's statistics, for its cluster][ALiBi slopes]
template <class Tile>
struct DecodeShared {
  static constexpr int kQueryUnits =
      Tile::kHeadTile * Tile::kDimTile * sizeof(typename Tile::Element) / 16;
  static constexpr int kRow = Tile::kDimTile + kMergePad;

  uint4* query;          // [2][slices][kQueryUnits]: this row's, and the next one's
  float* out;            // [warps][kHeadTile][kRow]
  float2* stats;         // [warps][kHeadTile]
  float* cluster_out;    // [slices * kHeadTile][kDimTile], where the query was
  float* cluster_stats;  // [slices * kHeadTile][2]
  float* slopes;         // [2][slices * kHeadTile], times log2 e

  __device__ DecodeShared(void* base, const DecodeParams& p) {
    const int heads = p.slices * Tile::kHeadTile;
    query = static_cast<uint4*>(base);
    out = reinterpret_cast<float*>(query + 2 * p.slices * kQueryUnits);
    stats = reinterpret_cast<float2*>(out + heads * p.token_warps * kRow);
    static_assert(2 * kQueryUnits * 4 >= Tile::kHeadTile * Tile::kDimTile);
    cluster_out = reinterpret_cast<float*>(query);
    cluster_stats = reinterpret_cast<float*>(stats + heads * p.token_warps);
    slopes = cluster_stats + heads * 2;
  }

  __device__ uint4* query_of(const DecodeParams& p, int buffer, int slice) const {
    return query + (buffer * p.slices + slice) * kQueryUnits;
  }
  __device__ float* slopes_of(const DecodeParams& p, int buffer, int slice) const {
    return slopes + (buffer * p.slices + slice) * Tile::kHeadTile;
  }
};

// Starts to bring a row's query heads and their slopes to one of the two places in shared memory; heads
// past the group become zeros.
template <class Tile>
__device__ __forceinline__ void stage_query(const DecodeParams& p, const Cursor& cursor,
                                            const DecodeShared<Tile>& shared, int buffer) {
  using Element = typename Tile::Element;
  constexpr int kPerWord = 4 / sizeof(Element);
  constexpr unsigned kWords = Tile::kDimTile / kPerWord;
  const int heads = cursor.heads(p);
  const Element* query = static_cast<const Element*>(p.query) + cursor.query_row(p) * p.head_dim;
  const unsigned units = p.slices * Tile::kHeadTile * kWords;
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < units; i += blockDim.x) {
    const int head = i / kWords;
    const int word = i % kWords;
    const int row = head % Tile::kHeadTile;
    uint32_t* to = reinterpret_cast<uint32_t*>(shared.query_of(p, buffer, head / Tile::kHeadTile)) +
                   Tile::query_index(row, word);
    const Element* from = query + head * p.head_dim + word * kPerWord;
    const bool valid = head < heads && word * kPerWord < p.head_dim;
    if constexpr (Tile::kVector || kPerWord == 1) {
      copy_async_4(to, valid ? from : query, valid);
    } else {
      const bool both = valid && word * kPerWord + 1 < p.head_dim;
      Element pair[2] = {valid ? from[0] : Element(0.0f), both ? from[1] : Element(0.0f)};
      memcpy(to, pair, sizeof(pair));
    }
  }
  if (p.alibi_slopes == nullptr) return;
  const float* slopes = p.alibi_slopes + cursor.b * p.alibi_batch_stride + cursor.query_head(p);
#pragma unroll 1
  for (int head = threadIdx.x; head < p.slices * Tile::kHeadTile; head += blockDim.x)
    shared.slopes_of(p, buffer, 0)[head] = head < heads ? slopes[head] * kLog2E : 0.0f;
}

}  // namespace jax_baracuda
