// Where the rows of a token go. Nothing that the device finds is trusted: what does not fit is dropped.
#pragma once

#include "cache/params.h"
#include "device/divide.cuh"

namespace jax_baracuda {

struct RowPlace {
  int slot, row;
  bool kept;
};

__device__ __forceinline__ bool within(int i, int count) {
  return static_cast<unsigned>(i) < static_cast<unsigned>(count);
}

// The position of a token, which is number `nth` of its request.
__device__ __forceinline__ int position_of(const RowParams& p, int token, int request, int nth) {
  if (p.placement != Placement::kCache) return p.positions[token];
  return static_cast<int>(static_cast<unsigned>(p.positions[request]) + nth);  // may wrap: dropped
}

// The first slot of a layer; negative if there is no such layer.
__device__ __forceinline__ int first_slot(const RowParams& p, int index) {
  if (!p.layers) return 0;
  const int layer = p.layers[p.layer_stride * index];
  return within(layer, p.layer_count) ? layer * p.layer_slots : -1;
}

__device__ __forceinline__ RowPlace place_in_pages(const RowParams& p, int token, int position) {
  const int request = p.batch_indices[token], first_page = first_slot(p, token);
  if (!within(request, p.table_requests) || position < 0) return {0, 0, false};
  const int first = min(max(p.page_indptr[request], 0), p.entries);
  const int end = min(p.page_indptr[request + 1], p.entries);
  const int nth = divide(position, p.page_size);
  if (nth >= end - first) return {0, 0, false};
  const int page = p.page_indices[first + nth];
  return {first_page + page, position - nth * static_cast<int>(p.page_size.divisor),
          first_page >= 0 && within(page, p.layer_slots)};
}

__device__ __forceinline__ RowPlace place_in_cache(const RowParams& p, int request, int position) {
  const int first_cache = first_slot(p, request);
  const int cache = request - divide(request, p.cache_requests) * p.layer_slots;
  return {first_cache + cache, position, first_cache >= 0 && within(position, p.slot_rows)};
}

}  // namespace jax_baracuda
