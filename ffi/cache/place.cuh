// Where the rows of a token go. Nothing that the device finds is trusted: what does not fit is dropped.
#pragma once

#include "cache/params.h"
#include "device/divide.cuh"

namespace jax_baracuda {

struct Place {
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

__device__ __forceinline__ Place place_in_pages(const RowParams& p, int token, int position) {
  const int request = p.batch_indices[token];
  if (!within(request, p.table_requests) || position < 0) return {0, 0, false};
  const int first = min(max(p.page_indptr[request], 0), p.entries);
  const int end = min(p.page_indptr[request + 1], p.entries);
  const int nth = divide(position, p.page_size);
  if (nth >= end - first) return {0, 0, false};
  const int page = p.page_indices[first + nth];
  return {page, position - nth * static_cast<int>(p.page_size.divisor), within(page, p.slots)};
}

__device__ __forceinline__ Place place_in_cache(const RowParams& p, int request, int position) {
  const int layer = p.layers[p.layer_stride * request];
  const int caches = p.cache_requests.divisor;
  const int cache = request - divide(request, p.cache_requests) * caches;
  const bool kept = within(layer, p.layer_count) && within(position, p.slot_rows);
  return {layer * caches + cache, position, kept};
}

}  // namespace jax_baracuda
