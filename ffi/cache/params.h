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
  int64_t source_request, source_token, source_head;
  int64_t target_slot, target_row, target_head;
  int heads, dim;
  int rotary_dim;    // columns that are rotated, in front of the others; 0: none
  int placed;        // the target is a store
  int rotary_units;  // see kernel.cuh
  int units;
  int slices;  // that the heads are cut in
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

  int lane_bits;    // 2^lane_bits lanes work on a token
  int slice_heads;  // heads of a set that they take one after the other
};

// Which kernel, and the parts of RowParams that are chosen: see config.h.
struct RowPlan {
  DType dtype;
  bool interleaved;  // pairs are neighbours
  bool rotated;      // some set is
  bool vector;       // 16 bytes at a time; false: element by element
};

}  // namespace jax_baracuda
