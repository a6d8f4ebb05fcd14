// Where K and V rows live: the kernel's parameter that tells a contiguous cache from a paged one.
#pragma once

#include <cstdint>

#include "decode/params.h"
#include "decode/schedule.cuh"
#include "device/memory.cuh"
#include "device/page_table.cuh"

namespace jax_baracuda {

// A source is made for the keys [token, token + 32) of a row, by a full warp. row(token, i) is the element offset, in both
// stores, of key token + i of those; full warps ask for it, also for keys at or past `limit`, which nobody then reads.

// A cache [B, Hkv, K, D] or [B, K, Hkv, D], read by strides.
class ContiguousSource {
 public:
  __device__ ContiguousSource(const DecodeParams& p, const Cursor& at, int, int)
      : origin_(at.row.b * p.kv_batch_stride + at.row.kv_head * p.kv_head_stride),
        token_stride_(p.kv_token_stride) {}

  __device__ int64_t row(int token, int i) const { return origin_ + (token + i) * token_stride_; }

 private:
  int64_t origin_;
  int64_t token_stride_;
};

// A store in pages. Each lane looks one key up; who needs its address asks that lane. The look-up is under way while
// the warp waits for the keys before these, so it costs no time of its own.
class PagedSource {
 public:
  __device__ PagedSource(const DecodeParams& p, const Cursor& at, int token, int limit)
      : head_dim_(p.head_dim), row_(at.row.kv_head * p.pages.head_stride) {
    const int own = token + static_cast<int>(threadIdx.x % 32);
    if (own < limit) row_ += store_row(p.pages, at.request.first_entry, own);
  }

  __device__ int64_t row(int, int i) const {
    return static_cast<int64_t>(__shfl_sync(0xffffffffu, row_, i)) * head_dim_;
  }

 private:
  int head_dim_;
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
