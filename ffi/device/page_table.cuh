// Look-ups in a page table. Whatever it holds, no address outside the table or the store comes out of them.
#pragma once

#include <cstdint>

#include "common/page_table.h"
#include "device/divide.cuh"

namespace jax_baracuda {

// Where the entries of a request begin, and how many keys it has.
struct PagedRequest {
  int first_entry, length;
};

__device__ __forceinline__ PagedRequest find_pages(const PageTable& t, int b) {
  const int page_size = t.page_size.divisor;
  const int first = min(max(t.indptr[b], 0), t.entries);
  const int pages = min(t.indptr[b + 1], t.entries) - first;
  const int last = min(max(t.last_page_len[b], 0), page_size);
  return {first, pages <= 0 ? 0 : min((pages - 1) * page_size + last, t.max_length)};
}

// The row of the store that holds a token of a request, for key/value head 0.
__device__ __forceinline__ uint32_t store_row(const PageTable& t, int first_entry, int token) {
  const int entry = divide(token, t.page_size);
  const unsigned page =
      min(static_cast<unsigned>(__ldg(t.indices + first_entry + entry)), t.pages - 1u);
  return page * t.page_stride + (token - entry * t.page_size.divisor) * t.token_stride;
}

}  // namespace jax_baracuda
