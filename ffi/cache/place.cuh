// Where the rows of a token go. Nothing that the device finds is trusted: what does not fit is dropped.
#pragma once

#include "cache/params.h"
#include "device/divide.cuh"

namespace jax_baracuda {

__device__ __forceinline__ bool within(int i, int count) {
  return static_cast<unsigned>(i) < static_cast<unsigned>(count);
}

// A token, and what its place depends on first: three look-ups that nothing waits for yet.
struct Token {
  int index;
  int position;       // kCache: that of the request's first token
  int layer;          // 0 where there is one
  int table_request;  // kPages
};

// The request of a token in the sources, and the how-manieth of it the token is.
__device__ __forceinline__ int request_of(const RowParams& p, int index) {
  return divide(index, p.request_tokens);
}
__device__ __forceinline__ int nth_of(const RowParams& p, int index) {
  return index - request_of(p, index) * static_cast<int>(p.request_tokens.divisor);
}

__device__ __forceinline__ Token find_token(const RowParams& p, int index) {
  const int row = p.placement == Placement::kCache ? request_of(p, index) : index;
  Token t = {index, p.positions[row], 0, 0};
  if (p.layers) t.layer = p.layers[p.layer_stride * row];
  if (p.placement == Placement::kPages) t.table_request = p.batch_indices[index];
  return t;
}

// The position of a token; it may wrap around and is then dropped.
__device__ __forceinline__ int position_of(const RowParams& p, const Token& t) {
  return p.placement == Placement::kCache
             ? static_cast<int>(static_cast<unsigned>(t.position) + nth_of(p, t.index))
             : t.position;
}

// A row of a slot of the token's layer: where head 0 of it begins, in elements of the target.
__device__ __forceinline__ int64_t place_in_layer(const RowParams& p, const RowSet& set,
                                                  const Token& t, int slot, int row) {
  return int64_t{t.layer * p.layer_slots + slot} * set.target_slot + row * set.target_row;
}

__device__ __forceinline__ int64_t place_in_pages(const RowParams& p, const RowSet& set,
                                                  const Token& t) {
  const int position = position_of(p, t);
  if (position < 0 || !within(t.table_request, p.table_requests)) return -1;
  const int first = min(max(p.page_indptr[t.table_request], 0), p.entries);
  const int end = min(p.page_indptr[t.table_request + 1], p.entries);
  const int nth = divide(position, p.page_size);
  if (nth >= end - first) return -1;
  const int page = p.page_indices[first + nth];
  if (!within(page, p.layer_slots)) return -1;
  return place_in_layer(p, set, t, page, position - nth * static_cast<int>(p.page_size.divisor));
}

__device__ __forceinline__ int64_t place_in_cache(const RowParams& p, const RowSet& set,
                                                  const Token& t) {
  const int position = position_of(p, t);
  if (!within(position, p.slot_rows)) return -1;
  const int request = request_of(p, t.index);
  const int cache = request - divide(request, p.cache_requests) * p.layer_slots;
  return place_in_layer(p, set, t, cache, position);
}

// Where a token goes, in elements of the target, for head 0; negative: nowhere.
__device__ __forceinline__ int64_t place(const RowParams& p, const RowSet& set, const Token& t) {
  if (!set.placed)
    return request_of(p, t.index) * set.target_slot + nth_of(p, t.index) * set.target_row;
  if (!within(t.layer, p.layer_count)) return -1;
  return p.placement == Placement::kPages ? place_in_pages(p, set, t) : place_in_cache(p, set, t);
}

}  // namespace jax_baracuda
