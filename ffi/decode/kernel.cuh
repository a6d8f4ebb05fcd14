// The split-K decode kernel: every warp streams its share of the chunks through registers; the warps of
// a CTA are merged at the end of each row; rows that several CTAs share are merged through distributed
// shared memory if those CTAs are one cluster, else they leave partial results for the combine kernel.
#pragma once

#include <cstdint>

#include "decode/config.h"
#include "decode/merge.cuh"
#include "decode/params.h"
#include "decode/schedule.cuh"
#include "decode/shared.cuh"
#include "decode/source.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

// Where the piece of a row that ends at `last` goes.
__device__ __forceinline__ Destination destination(const DecodeParams& p, const Cursor& last,
                                                   int segment_begin) {
  if (p.cluster) return {Destination::kCluster, -1};
  if (p.splits == 1) return {Destination::kOutput, -1};
  if (p.splits > 0) {
    const int64_t line_row = int64_t{last.row.b} * p.kv_heads + last.row.kv_head;
    return {Destination::kWorkspace, line_row * p.splits + blockIdx.x % p.splits};
  }
  if (segment_begin == 0 && last.chunk + 1 == last.request.chunks)
    return {Destination::kOutput, -1};
  return {Destination::kWorkspace, 2 * int64_t{blockIdx.x} + (segment_begin == 0 ? 1 : 0)};
}

template <class Tile, class Source, int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads, 1)
    decode_kernel(const __grid_constant__ DecodeParams p) {
  extern __shared__ uint4 shared_memory[];
  const DecodeShared<Tile> shared(shared_memory, p);
  launch_dependents();

  const int warp = threadIdx.x / 32;
  const int token_warp = p.slices == 1 ? warp : warp / p.slices;
  const int slice = p.slices == 1 ? 0 : warp - token_warp * p.slices;
  const int token_offset = token_warp * Tile::kTokens;
  Source source(p, token_offset);

  Cursor cursor = first_chunk<Source::kKeys>(p, blockIdx.x);
  if (p.cluster)
    enter_cluster(p, cursor.row, shared);
  else if (cursor.remaining == 0)
    return;

  const int result = token_warp * p.block_heads + slice * Tile::kHeadTile;

  // The first keys are asked for before the query, which takes longer to find; behind the values it would
  // wait until memory has served them all. An empty piece of a cluster's row reads no keys and takes part
  // in the merge.
  Tile tile;
  int token = cursor.begin(p) + token_offset;
  int limit = cursor.remaining > 0 ? cursor.limit() : 0;
  source.start(p, cursor);
  tile.load_keys(p, source, token, limit);
  stage_query(p, cursor.row, shared, 0);
  tile.load_values(p, source, token, limit);
  copy_async_wait_all();
  __syncthreads();

  int buffer = 0;
  int merge_buffer = 0;
  int segment_begin = cursor.chunk;
  bool row_begins = true;
#pragma unroll 1
  while (true) {
    // Keys of the next chunk are asked for as soon as this chunk's registers are free, across the ends
    // of rows: memory has work during the softmax and the merge.
    Cursor next = cursor;
    next.advance<Source::kKeys>(p);
    const bool more = next.remaining > 0;
    const bool row_ends = !more || next.chunk == 0;
    if (row_begins && cursor.remaining > cursor.request.chunks - cursor.chunk) {
      Row after = cursor.row;
      after.advance(p);
      stage_query(p, after, shared, buffer ^ 1);
    }
    row_begins = row_ends;
    const int next_token = next.begin(p) + token_offset;
    const int next_limit = more ? next.limit() : 0;
    source.move(p, next);

    tile.multiply_keys(shared.query_of(p, buffer, slice));
    tile.load_keys(p, source, next_token, next_limit);
    tile.update_softmax(p, p.alibi_slopes == nullptr ? nullptr : shared.slopes_of(p, buffer, slice),
                        token, limit, cursor.request.length - 1);
    tile.multiply_values();
    tile.load_values(p, source, next_token, next_limit);

    if (row_ends) {
      tile.store(shared.out + merge_buffer + result * DecodeShared<Tile>::kRow,
                 shared.stats + merge_buffer + 2 * result,
                 cursor.row.heads(p) - slice * Tile::kHeadTile);
      copy_async_wait_all();
      __syncthreads();
      merge_warps(p, cursor.row, shared, merge_buffer, destination(p, cursor, segment_begin));
      if (!more) break;
      if (p.merge_stride == 0) __syncthreads();
      merge_buffer = p.merge_stride - merge_buffer;
      tile.reset();
      buffer ^= 1;
      segment_begin = 0;
    }
    cursor = next;
    token = next_token;
    limit = next_limit;
  }
  if (p.cluster) merge_cluster(p, cursor.row, shared);
}

}  // namespace jax_baracuda
