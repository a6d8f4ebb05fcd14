// Where K and V rows live: the kernel's parameter that tells a contiguous cache from a paged one.
#pragma once

#include <cstdint>

#include "decode/params.h"
#include "decode/schedule.cuh"
#include "device/memory.cuh"
#include "device/page_table.cuh"

namespace jax_baracuda {

// A source follows a warp's walk: start() at its first chunk, then move() to each further one. find(i) says where the i-th of
// the warp's keys in the chunk lies, and offset() of that is its element offset in both stores. Full warps ask, also for
// keys past the end of the row, which nobody then reads.

// A cache [B, Hkv, K, D] or [B, K, Hkv, D], read by strides.
class ContiguousSource {
 public:
  static constexpr Keys kKeys = Keys::kContiguous;

  // `token_offset`: of the warp's keys in a chunk.
  __device__ ContiguousSource(const DecodeParams&, int token_offset)
      : token_offset_(token_offset) {}

  __device__ void start(const DecodeParams& p, const Cursor& at) { move(p, at); }
  __device__ void move(const DecodeParams& p, const Cursor& at) {
    origin_ = at.row.b * p.kv_batch_stride + at.row.kv_head * p.kv_head_stride;
    token_ = at.begin(p) + token_offset_;
    token_stride_ = p.kv_token_stride;
  }

  __device__ int64_t find(int i) const { return origin_ + (token_ + i) * token_stride_; }
  __device__ static int64_t offset(const DecodeParams&, int64_t found) { return found; }

 private:
  int64_t origin_;
  int64_t token_stride_;
  int token_, token_offset_;
};

// The CTAs together bring the page table to L2 while they work out where they begin.
__device__ __forceinline__ void prefetch_table(const PageTable& t) {
  constexpr int kLine = 128 / sizeof(int32_t);
  const int64_t entry = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kLine;
  if (entry < t.entries) prefetch_l2(t.indices + entry);
}

// A store in pages. Each lane looks one key up, and who needs its address asks that lane. Pages are asked for one move
// ahead: a look-up behind the loads under way would wait as long as they do.
class PagedSource {
 public:
  static constexpr Keys kKeys = Keys::kPaged;

  __device__ PagedSource(const DecodeParams& p, int token_offset)
      : own_offset_(token_offset + threadIdx.x % 32) {
    prefetch_table(p.pages);
  }

  __device__ void start(const DecodeParams& p, const Cursor& at) {
    page_ = look_up(p, at);
    move(p, at);
  }
  __device__ void move(const DecodeParams& p, const Cursor& at) {
    row_ =
        store_row(p.pages, page_, at.begin(p) + own_offset_) + at.row.kv_head * p.pages.head_stride;
    Cursor next = at;
    next.advance<kKeys>(p);
    page_ = look_up(p, next);
  }

  __device__ uint32_t find(int i) const { return __shfl_sync(0xffffffffu, row_, i); }
  __device__ static int64_t offset(const DecodeParams& p, uint32_t found) {
    return uint64_t{found} * static_cast<uint32_t>(p.head_dim);
  }

 private:
  // The page of this lane's key in a chunk; any page if there is no such key.
  __device__ int look_up(const DecodeParams& p, const Cursor& at) const {
    const int token = at.begin(p) + own_offset_;
    return at.remaining > 0 && token < at.limit() ? page_of(p.pages, at.request.first_entry, token)
                                                  : 0;
  }

  int own_offset_, page_;
  uint32_t row_;
};

// Where a warp's keys lie that come through a ring, four rows side by side at a time: find_four(p, i) is the element offset of
// the i-th four of them where the source stands. Otherwise as above; start() is called by all warps of the CTA.
class ContiguousFours : public ContiguousSource {
 public:
  static constexpr bool kAdjacent = true;  // the fours of a tile lie side by side

  __device__ ContiguousFours(const DecodeParams& p, int token_offset, const void*)
      : ContiguousSource(p, token_offset) {}
  __device__ int64_t find_four(const DecodeParams&, int i) const { return find(4 * i); }
};

// Pages whose size is a multiple of four. A lane looks up the page of one four, so that the warp knows the pages of some of its
// tiles, all in one row. Those of the tiles behind them it asks for as soon as it has asked for the first of these. A small
// table is brought to shared memory first, while the bounds of the requests are under way.
template <int kTokens>
class PagedFours {
 public:
  static constexpr Keys kKeys = Keys::kPaged;
  static constexpr bool kAdjacent = false;

  __device__ PagedFours(const DecodeParams& p, int token_offset, void* shared)
      : token_offset_(token_offset), table_(0) {
    if (p.table_offset == 0) {
      prefetch_table(p.pages);
      return;
    }
    table_ = static_cast<uint32_t>(__cvta_generic_to_shared(shared)) + p.table_offset;
#pragma unroll 1
    for (int i = threadIdx.x; i < p.pages.entries; i += blockDim.x)
      copy_async_4(table_ + i * 4, p.pages.indices + i, true);
  }

  __device__ void start(const DecodeParams& p, const Cursor& at) {
    if (table_ != 0) {
      copy_async_wait_all();
      __syncthreads();
    }
    page_ = look_up(p, at);
    turn(p, at);
  }
  __device__ void move(const DecodeParams& p, const Cursor& at) {
    if (++tile_ == 1) {  // not before the first tile was asked for
      Cursor behind = at;
      behind.jump<kKeys>(p, tiles_ - 1);
      page_ = look_up(p, behind);
    }
    if (tile_ == tiles_) turn(p, at);
  }
  __device__ int64_t find_four(const DecodeParams& p, int i) const {
    const uint32_t row = __shfl_sync(0xffffffffu, row_, tile_ * kFours + i);
    return uint64_t{row} * static_cast<uint32_t>(p.head_dim);
  }

 private:
  static constexpr int kFours = kTokens / 4;  // of a tile
  static constexpr int kTiles = 32 / kFours;  // that the warp knows at a time

  // Turns to the tiles that were looked up, of which `at` is the first.
  __device__ void turn(const DecodeParams& p, const Cursor& at) {
    row_ = store_row(p.pages, page_, own_token(p, at)) + at.row.kv_head * p.pages.head_stride;
    tile_ = 0;
    tiles_ = min(kTiles, min(at.remaining, at.request.chunks - at.chunk));
  }
  // The chunk and the first token of this lane's four, if the warp knows the tiles from `at` on.
  __device__ static int own_chunk(const Cursor& at) { return at.chunk + threadIdx.x % 32 / kFours; }
  __device__ int own_token(const DecodeParams& p, const Cursor& at) const {
    return at.request.chunk_begin(p, own_chunk(at)) + token_offset_ + threadIdx.x % kFours * 4;
  }
  // The page of this four; any page if there is no such four.
  __device__ int look_up(const DecodeParams& p, const Cursor& at) const {
    const int token = own_token(p, at);
    if (at.remaining <= 0 || own_chunk(at) >= at.request.chunks || token >= at.request.length)
      return 0;
    const int entry = at.request.first_entry + divide(token, p.pages.page_size);
    return table_ != 0 ? static_cast<int>(load_shared_4(table_ + entry * 4))
                       : __ldg(p.pages.indices + entry);
  }

  int token_offset_;
  uint32_t table_;  // in shared memory; 0: it is not there
  int page_;        // of this lane's four of the tiles behind those that the warp knows, on its way
  uint32_t row_;    // of its four of those
  int tile_, tiles_;  // which one is next, and how many there are
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
