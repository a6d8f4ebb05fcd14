// What a decode launch needs to know. Plain data: host and device read the same structs.
#pragma once

#include <cstdint>

#include "common/divisor.h"
#include "common/dtype.h"
#include "common/page_table.h"

namespace jax_baracuda {

// The problem, from the operands' shapes and the op's attributes alone.
struct DecodeShape {
  DType dtype = DType::kF16;
  int batch = 0;
  int kv_heads = 0;
  int group = 0;  // query heads per key/value head
  int head_dim = 0;
  int kv_capacity = 0;          // rows of the cache per request; paged: the most that it can have
  bool uneven_lengths = false;  // requests may differ in length
  bool paged = false;
  bool adjacent_rows = false;  // a request's rows of a head lie side by side; paged: four at a time
  int table_entries = 0;       // of the page table
  int num_splits = 0;  // 0: the scheduler spreads the rows over the CTAs; n: every row is cut in n
};

// How the work is cut: chosen on the host in config.h, from shapes and the device only.
struct DecodeConfig {
  // Which instantiation.
  int dim_tile = 0;    // head_dim rounded up to an instantiated one
  int head_tile = 0;   // query heads a warp holds
  bool vector = true;  // 16-byte loads; false: element by element, for head dims that rule them out
  bool paged = false;
  // How a CTA is laid out.
  int slices = 0;         // warps that share the same keys for different query heads
  int token_warps = 0;    // warps that take different keys
  int chunk_tokens = 0;   // keys that a CTA takes at once
  int block_heads = 0;    // query heads of a CTA: min(group, slices * head_tile)
  int head_blocks = 0;    // CTAs' worth of query heads in a group, 1 unless the group is huge
  int merge_buffers = 1;  // 2: rows end with one barrier less
  int shared_bytes = 0;
  int ring_stages =
      0;  // tiles that each warp has in a ring in shared memory; 0: keys travel through registers
  int ring_offset = 0;   // bytes of shared memory in front of the rings
  int table_offset = 0;  // where the page table lies in shared memory; 0: it does not
  // How the rows are spread.
  int splits = 0;        // 0: stream, else pieces per row
  bool cluster = false;  // the pieces of a row are a cluster, which merges them itself
  int64_t ctas = 0;
  int64_t even_ctas = 0;  // of the stream's, those that take part where all requests are as long
  int lanes = 1;          // rows of a request that the stream takes side by side
  int64_t partial_slots = 0;  // partial results that the workspace must hold

  int warps() const { return slices * token_warps; }
};

// What the choice needs to know of the device and of a kernel's layout on it.
struct DecodeDevice {
  int sms = 0;
  int ctas_per_sm = 0;    // CTAs of the default layout that one SM holds
  int pairs = 0;          // clusters of two CTAs of the largest size that run at once
  int wide_clusters = 0;  // likewise of kWideCluster CTAs
  // Where there is a kernel that reads through rings, else 0: shared memory of an SM, and its wide clusters.
  int ring_shared = 0;
  int wide_ring_clusters = 0;
};

struct DecodeParams {
  const void* query;
  const void* key;
  const void* value;
  const int32_t* kv_lengths;  // null: every request has kv_capacity rows; not null if paged
  const float* sinks;         // null: none
  const float* alibi_slopes;  // null: none
  void* out;
  float* lse;
  // The workspace: [slots][slot_heads][head_dim] sums, [slots][slot_heads][2] maximum and denominator.
  float* partial_out;
  float* partial_stats;

  PageTable pages;

  int64_t kv_batch_stride;  // in elements; of contiguous caches
  int64_t kv_head_stride;
  int64_t kv_token_stride;
  int64_t sinks_batch_stride;
  int64_t alibi_batch_stride;

  int batch, kv_heads, group, head_dim, kv_capacity;
  int window_left, sink_tokens;
  // A base-2 logit is product * outer_scale; with a soft cap tanh(product * inner_scale) * outer_scale.
  float outer_scale, inner_scale;
  int capped;

  Divisor chunk_tokens;
  int slices, token_warps, block_heads, head_blocks;
  int merge_buffers;
  int merge_stride;  // floats from one merge buffer to the other; 0: there is one
  int splits, cluster, slot_heads;
  int cluster_quads, cluster_bits;  // that a CTA of a cluster finishes; log2 of the cluster's CTAs
  int ctas, even_ctas;
  // The stream takes so many rows of a request side by side, one a CTA: all, or one. CTAs with the same keys of different heads
  // are neighbours.
  Divisor lanes;
  // The stream where every request fills the cache, so that no CTA has to work it out: chunks of a row,
  // rows of a request, the size of a CTA's piece and how many CTAs have one chunk more.
  Divisor full_row_chunks, full_request_rows;
  int full_piece, full_longer_pieces;
  // Of a kernel that reads through a ring in shared memory (ring.cuh): tiles of a warp, and where they lie, in bytes.
  int ring_stages, ring_offset;
  int table_offset;  // of a page table in its shared memory; 0: it is not there
};

}  // namespace jax_baracuda
