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

// [query][each warp's result][its statistics][what the CTAs of a cluster send][ALiBi slopes]
template <class Tile>
struct DecodeShared {
  static constexpr int kQueryUnits =
      Tile::kHeadTile * Tile::kDimTile * sizeof(typename Tile::Element) / 16;
  static constexpr int kRow = Tile::kDimTile + kMergePad;

  uint4* query;  // [2][slices][kQueryUnits]: this row's, and the next one's
  float* out;    // [merge buffers] of [token warps][block heads][kRow]
  float* stats;  // [merge buffers] of [token warps][block heads][2], after each buffer of out
  float4* received_out;    // [pieces][cluster quads]
  float2* received_stats;  // the same, maximum and sum
  uint64_t* all_received;  // a barrier in shared memory
  float* slopes;           // [2][slices * kHeadTile], times log2 e

  __device__ DecodeShared(void* base, const DecodeParams& p) {
    query = static_cast<uint4*>(base);
    out = reinterpret_cast<float*>(query + 2 * p.slices * kQueryUnits);
    const int results = p.block_heads * p.token_warps;
    stats = out + results * kRow;
    const int received = p.splits * p.cluster_quads;
    received_out = reinterpret_cast<float4*>(
        out + p.merge_buffers * merge_floats(p.block_heads, p.token_warps, Tile::kDimTile));
    received_stats = reinterpret_cast<float2*>(received_out + received);
    all_received = reinterpret_cast<uint64_t*>(received_stats + received);
    slopes = reinterpret_cast<float*>(all_received + 1);
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
__device__ __forceinline__ void stage_query(const DecodeParams& p, const Row& row,
                                            const DecodeShared<Tile>& shared, int buffer) {
  using Element = typename Tile::Element;
  constexpr int kPerWord = 4 / sizeof(Element);
  constexpr unsigned kChunks = Tile::kDimTile / kPerWord / 4;
  const int heads = row.heads(p);
  const Element* query = static_cast<const Element*>(p.query) + row.query_row(p) * p.head_dim;
  const unsigned units = p.slices * Tile::kHeadTile * kChunks;
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < units; i += blockDim.x) {
    const int head = i / kChunks;
    const int chunk = i % kChunks;
    uint32_t* to = reinterpret_cast<uint32_t*>(shared.query_of(p, buffer, head / Tile::kHeadTile)) +
                   Tile::query_index(head % Tile::kHeadTile, chunk);
    const int d = chunk * 4 * kPerWord;
    const bool valid = head < heads && d < p.head_dim;
    const Element* from = query + (valid ? head * p.head_dim + d : 0);
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      uint32_t* place = to + Tile::query_word(word);
      if constexpr (Tile::kVector) {
        copy_async_4(place, from + word * kPerWord, valid);
      } else {
        Element elements[kPerWord];
#pragma unroll
        for (int e = 0; e < kPerWord; ++e) {
          const int at = word * kPerWord + e;
          elements[e] = valid && d + at < p.head_dim ? from[at] : Element(0.0f);
        }
        memcpy(place, elements, sizeof(elements));
      }
    }
  }
  if (p.alibi_slopes == nullptr) return;
  const float* slopes = p.alibi_slopes + row.b * p.alibi_batch_stride + row.query_head(p);
#pragma unroll 1
  for (int head = threadIdx.x; head < p.slices * Tile::kHeadTile; head += blockDim.x)
    shared.slopes_of(p, buffer, 0)[head] = head < heads ? slopes[head] * kLog2E : 0.0f;
}

}  // namespace jax_baracuda
