// The operands of a page table, and how they become a PageTable.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "common/buffers.h"
#include "common/page_table.h"

namespace jax_baracuda {

struct PageOperands {
  xla::ffi::AnyBuffer indices, indptr, last_page_len;

  template <class Binding>
  static auto bind(Binding&& binding) {
    using xla::ffi::AnyBuffer;
    return std::forward<Binding>(binding)
        .template Arg<AnyBuffer>()   // page_indices
        .template Arg<AnyBuffer>()   // page_indptr
        .template Arg<AnyBuffer>();  // last_page_len
  }
};

// The table of `batch` requests over a store of that shape. A request is taken to have at most `max_length` keys.
inline xla::ffi::Error read_page_table(const char* op, const PageOperands& operands, int64_t batch,
                                       int64_t pages, int64_t page_size, int64_t kv_heads, bool nhd,
                                       int64_t max_length, PageTable* table) {
  constexpr int64_t kMaxTokens = int64_t{1} << 30;
  const int64_t entries = operands.indices.element_count();
  if (!has_shape(operands.indices, xla::ffi::S32, {entries}) ||
      !has_shape(operands.indptr, xla::ffi::S32, {batch + 1}) ||
      !has_shape(operands.last_page_len, xla::ffi::S32, {batch}))
    return invalid_argument(
        op, "page_indices, page_indptr and last_page_len must be int32 [N], [B + 1] and [B]");
  if (page_size < 1 || entries >= kMaxTokens / page_size)
    return invalid_argument(
        op, "page_size must be positive and the page table name less than 2^30 keys");
  if (pages * page_size * kv_heads >= int64_t{1} << 32)
    return invalid_argument(op, "the store must have less than 2^32 rows");
  table->indices = operands.indices.typed_data<int32_t>();
  table->indptr = operands.indptr.typed_data<int32_t>();
  table->last_page_len = operands.last_page_len.typed_data<int32_t>();
  table->entries = static_cast<int>(entries);
  table->pages = static_cast<int>(pages);
  table->max_length = pages == 0 ? 0 : static_cast<int>(std::min(max_length, entries * page_size));
  table->page_size = Divisor(static_cast<uint32_t>(page_size));
  table->page_stride = static_cast<uint32_t>(page_size * kv_heads);
  table->head_stride = static_cast<uint32_t>(nhd ? 1 : page_size);
  table->token_stride = static_cast<uint32_t>(nhd ? kv_heads : 1);
  return xla::ffi::Error::Success();
}

}  // namespace jax_baracuda
