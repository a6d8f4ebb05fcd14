// Keys and values in pages: plain data for host and device.
#pragma once

#include <cstdint>

#include "common/divisor.h"

namespace jax_baracuda {

// Which pages of a store [pages, Hkv, page_size, D] (HND) or [pages, page_size, Hkv, D] (NHD) hold the keys of
// which request, in FlashInfer's format: those of request b are indices[indptr[b]] .. indices[indptr[b + 1] - 1],
// all full but the last one. Nothing here is trusted: see device/page_table.cuh.
struct PageTable {
  const int32_t* indices;        // [entries]
  const int32_t* indptr;         // [batch + 1]; null: the keys are not in pages
  const int32_t* last_page_len;  // [batch]

  int entries, pages;
  int max_length;  // of a request: what is longer is cut, so that sums over requests fit 32 bits
  Divisor page_size;
  // The store in rows of D elements, of which there are less than 2^32: from one page, head, token to the next.
  uint32_t page_stride, head_stride, token_stride;
};

}  // namespace jax_baracuda
