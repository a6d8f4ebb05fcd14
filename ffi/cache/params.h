// What a launch of the row kernel needs to know. Plain data: host and device read the same structs.
#pragma once

#include <cstdint>

#include "common/divisor.h"
#include "common/dtype.h"

namespace jax_baracuda {

// The rows of one tensor, a row being one head of one token: where they come from and where they go.
struct RowSet {
  const void* source;
  void* target;
  // In elements. A target is a store's [slot, ...] with rows and heads, or like the source.
  uint32_t source_token, source_head;
  int64_t source_gap;  // from the end of a request's tokens, a stride apart, to the next request's
  int64_t target_slot, target_row, target_head;
  int heads, dim;
  int rotary_dim;  // columns that are rotated, in front of the others; 0: none
  int placed;      // the target is a store

  // Chosen in config.h; kernel.cuh says what they mean.
  Divisor rotary_units;  // of the units of a row
  Divisor turns;         // of a token: one a pair of columns
  int units;
  int lane_bits;
  int tile_tokens, tile_heads;
  int head_inner;       // whether heads or tokens lie next to each other in the source
  Divisor inner;        // that many of them in a tile
  Divisor head_slices;  // tiles side by side over the heads
  int ctas;
};

// Which row of a store a token goes to.
enum class Placement {
  kNone,   // no set is placed
  kPages,  // by a page table
  kCache,  // behind the rows of its request
};

struct RowParams {
  RowSet sets[3];
  int set_count;

  int tokens;
  Divisor request_tokens;    // tokens of a request in the sources; without requests, all of them
  const int32_t* positions;  // [tokens]; kCache: [requests], of the first token of each
  const float* inv_freq;     // [rotary_dim / 2]
  float attention_factor;

  // A store has slots, pages or caches, in every layer.
  Placement placement;
  int slot_rows, layer_slots, layer_count;
  const int32_t*
      layers;        // [1], or [tokens] (kPages), [requests] (kCache); null: there is one layer
  int layer_stride;  // 0 or 1
  // kPages
  const int32_t* batch_indices;  // [tokens]
  const int32_t* page_indices;   // [entries]
  const int32_t* page_indptr;    // [table_requests + 1]
  int table_requests, entries;
  Divisor page_size;
  // kCache: request r has cache r % layer_slots
  Divisor cache_requests;

  int shared_bytes;
};

// Which kernel: what config.h needs to know of it.
struct RowPlan {
  DType dtype;
  bool interleaved;  // pairs are neighbours
  bool rotated;      // some set is
  bool vector;       // 16 bytes at a time; false: element by element
};

}  // namespace jax_baracuda
