// The split-K decode kernel: every warp streams its share of the chunks through registers; the warps of
// a CTA are merged at the end of each row; rows that several CTAs share are merged through distributed
// shared memory if those CTAs are one cluster, else they leave partial results for the combine kernel.
#pragma once

#include <cstdint>

#include "decode/config.h"
#include "decode/merge.cuh"
#include "decode/params.h"
#include "decode/schedule.cuh"
#include "decode/score.cuh"
#include "decode/shared.cuh"
#include "decode/source.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

// Where the piece of a row that ends at `last` goes.
__device__ __forceinline__ Destination destination(const DecodeParams& p, const Cursor& last,
                                                   int segment_begin, bool first_segment) {
  if (p.cluster) return {Destination::kShared, -1};
  if (p.splits == 1) return {Destination::kOutput, -1};
  if (p.splits > 0)
    return {Destination::kWorkspace, fixed_slot(p, last.b, last.kv_head, blockIdx.x % p.splits)};
  if (segment_begin == 0 && last.chunk + 1 == last.request.chunks)
    return {Destination::kOutput, -1};
  return {Destination::kWorkspace, 2 * int64_t{blockIdx.x} + (first_segment ? 0 : 1)};
}

template <class Tile, template <class> class Source, int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads, 1)
    decode_kernel(const __grid_constant__ DecodeParams p) {
  using KvSource = Source<typename Tile::Element>;
  extern __shared__ uint4 shared_memory[];
  const DecodeShared<Tile> shared(shared_memory, p);
  launch_dependents();

  Cursor cursor = first_chunk(p, blockIdx.x);
  if (cursor.remaining == 0 && !p.cluster) return;

  const int warp = threadIdx.x / 32;
  const int slice = p.slices == 1 ? 0 : warp % p.slices;
  const int token_offset = (p.slices == 1 ? warp : warp / p.slices) * Tile::kTokens;
  const Scorer scorer(p);

  // The query goes first: behind the keys it would wait until memory has served them all. An empty piece
  // of a cluster's row reads no keys and takes part in the merge.
  stage_query(p, cursor, shared, 0);
  Tile tile;
  int token = cursor.begin(p) + token_offset;
  int limit = cursor.remaining > 0 ? cursor.limit() : 0;
  {
    const KvSource source(p, cursor);
    tile.load_keys(p, source, token, limit);
    tile.load_values(p, source, token, limit);
  }
  copy_async_wait_all();
  __syncthreads();

  int buffer = 0;
  int segment_begin = cursor.chunk;
  bool first_segment = true;
#pragma unroll 1
  while (true) {
    // Keys of the next chunk are asked for as soon as this chunk's registers are free, across the ends
    // of rows: memory has work during the softmax and the merge.
    Cursor next = cursor;
    next.advance(p);
    const bool more = next.remaining > 0;
    const bool row_ends = !more || next.chunk == 0;
    if (row_ends && more) stage_query(p, next, shared, buffer ^ 1);
    const KvSource next_source(p, next);
    const int next_token = next.begin(p) + token_offset;
    const int next_limit = more ? next.limit() : 0;

    tile.multiply_keys(shared.query_of(p, buffer, slice));
    tile.load_keys(p, next_source, next_token, next_limit);
    tile.update_softmax(scorer,
                        p.alibi_slopes == nullptr ? nullptr : shared.slopes_of(p, buffer, slice),
                        token, limit, cursor.request.length - 1);
    tile.multiply_values();
    tile.load_values(p, next_source, next_token, next_limit);

    if (row_ends) {
      const int slot = warp * Tile::kHeadTile;
      tile.store(shared.out + slot * DecodeShared<Tile>::kRow, shared.stats + slot);
      __syncthreads();
      merge_warps(p, cursor, shared, destination(p, cursor, segment_begin, first_segment));
      if (!more) break;
      copy_async_wait_all();
      __syncthreads();
      tile.reset();
      buffer ^= 1;
      segment_begin = 0;
      first_segment = false;
    }
    cursor = next;
    token = next_token;
    limit = next_limit;
  }
  if (p.cluster) merge_cluster(p, cursor, shared);
}

}  // namespace jax_baracuda
