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

// A load that the compiler does not put off until it knows that its result is needed: that costs a trip to memory more.
__device__ __forceinline__ int load_now(const int32_t* from) {
  int value;
  asm volatile("ld.global.nc.b32 %0, [%1];\n" : "=r"(value) : "l"(from));
  return value;
}

// From the request's own bounds alone: where they decrease it has no pages. Those of requests before it do not matter, so
// ranges that overlap are each read in full (the reference, whose memory is sized by the entries, reads no more
// pages than there are entries).
__device__ __forceinline__ PagedRequest find_pages(const PageTable& t, int b) {
  const int page_size = t.page_size.divisor;
  const int begin = load_now(t.indptr + b), end = load_now(t.indptr + b + 1);
  const int last = min(max(load_now(t.last_page_len + b), 0), page_size);
  const int first = min(max(begin, 0), t.entries);
  const int pages = min(end, t.entries) - first;
  return {first, pages <= 0 ? 0 : min((pages - 1) * page_size + last, t.max_length)};
}

// The page of a token of a request, as the table has it.
__device__ __forceinline__ int page_of(const PageTable& t, int first_entry, int token) {
  return __ldg(t.indices + first_entry + divide(token, t.page_size));
}

// The same page where it is one, some page of the store where it is not. The store has pages.
__device__ __forceinline__ int page_in_store(const PageTable& t, int page) {
  return min(static_cast<unsigned>(page), t.pages - 1u);
}

__device__ __forceinline__ int row_in_page(const PageTable& t, int token) {
  return token - divide(token, t.page_size) * t.page_size.divisor;
}

// The row of the store where a token lies, for key/value head 0.
__device__ __forceinline__ uint32_t store_row(const PageTable& t, int page, int token) {
  return page_in_store(t, page) * t.page_stride + row_in_page(t, token) * t.token_stride;
}

}  // namespace jax_baracuda
