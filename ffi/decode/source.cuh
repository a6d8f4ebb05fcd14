// Where K and V rows live: the kernel's parameter that tells a contiguous cache from a paged one.
#pragma once

#include <cstdint>

#include "decode/params.h"
#include "decode/schedule.cuh"
#include "device/memory.cuh"
#include "device/page_table.cuh"

namespace jax_baracuda {

// A source is moved by a full warp to the keys [token, token + 32) of a row. find(i) then says where key token + i lies,
// and offset() of that is its element offset in both stores. Full warps ask, also for keys at or past `limit`, which
// nobody then reads.

// A cache [B, Hkv, K, D] or [B, K, Hkv, D], read by strides.
class ContiguousSource {
 public:
  __device__ explicit ContiguousSource(const DecodeParams&) {}

  __device__ void move(const DecodeParams& p, const Cursor& at, int token, int) {
    origin_ = at.row.b * p.kv_batch_stride + at.row.kv_head * p.kv_head_stride;
    token_ = token;
    token_stride_ = p.kv_token_stride;
  }

  __device__ int64_t find(int i) const { return origin_ + (token_ + i) * token_stride_; }
  __device__ static int64_t offset(const DecodeParams&, int64_t found) { return found; }

 private:
  int64_t origin_;
  int64_t token_stride_;
  int token_;
};

// A store in pages. Each lane looks one key up, and who needs its address asks that lane. The pages of the next chunk of
// the row are asked for one move ahead: a look-up behind the loads under way would wait as long as they do.
class PagedSource {
 public:
  __device__ explicit PagedSource(const DecodeParams& p) { prefetch_table(p.pages); }

  __device__ void move(const DecodeParams& p, const Cursor& at, int token, int limit) {
    const int first_entry = at.request.first_entry;
    const int own = token + static_cast<int>(threadIdx.x % 32);
    int page = ahead_page_;
    if (token != ahead_ || first_entry != ahead_entry_)  // the walk has come to another row
      page = own < limit ? page_of(p.pages, first_entry, own) : 0;
    row_ = store_row(p.pages, page, own) + at.row.kv_head * p.pages.head_stride;

    const int chunk = p.chunk_tokens.divisor;
    ahead_ = token + chunk < limit ? token + chunk : -1;
    ahead_entry_ = first_entry;
    ahead_page_ = own + chunk < limit ? page_of(p.pages, first_entry, own + chunk) : 0;
  }

  __device__ uint32_t find(int i) const { return __shfl_sync(0xffffffffu, row_, i); }
  __device__ static int64_t offset(const DecodeParams& p, uint32_t found) {
    return uint64_t{found} * static_cast<uint32_t>(p.head_dim);
  }

 private:
  // The CTAs together bring the table to L2 while they work out where they begin.
  __device__ static void prefetch_table(const PageTable& t) {
    constexpr int kLine = 128 / sizeof(int32_t);
    const int64_t entry = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kLine;
    if (entry < t.entries) prefetch_l2(t.indices + entry);
  }

  int ahead_ = -1, ahead_entry_ = 0, ahead_page_ = 0;
  uint32_t row_;
};

// Chunk `chunk` (16 bytes) of a row; zeros past the head dim or where the row is not `valid`. Nothing
// outside the row is read: rows that are masked may lie past the end of the cache or hold NaN.
template <bool Vector, class Element>
__device__ __forceinline__ uint4 load_chunk(const Element* row, int chunk, int head_dim,
                                            bool valid) {
  constexpr int kElements = 16 / sizeof(Element);
  if constexpr (Vector) {
    return load_global_16_if(row + chunk * kElements, valid && chunk * kElements < head_dim);
  } else {
    Element elements[kElements];
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int d = chunk * kElements + i;
      elements[i] = valid && d < head_dim ? row[d] : Element(0.0f);
    }
    uint4 packed;
    memcpy(&packed, elements, sizeof(packed));
    return packed;
  }
}

}  // namespace jax_baracuda
