// Which keys a CTA reads: computed on the device from the requests' lengths, so that one captured graph
// serves every length.
//
// A row is one (request, key/value head, block of query heads). Its visible keys are cut in chunks of
// `chunk_tokens`; rows follow each other in one long line of chunks, and in stream mode every CTA takes
// an equal, contiguous piece of that line. So uneven lengths leave no SM idle, a CTA meets at most two
// rows that it does not own alone, and the partial results number at most two a CTA. With a fixed
// split count every row is cut by itself, and its result depends on nothing else in the batch.
#pragma once

#include <cstdint>

#include "decode/params.h"
#include "device/divide.cuh"
#include "device/page_table.cuh"

namespace jax_baracuda {

// The visible keys of a request: [0, sink_end) and [window_begin, length), in chunks. A request with no
// visible key still has one (empty) chunk, so that somebody writes its output.
struct Request {
  int length, window_begin, sink_end, sink_chunks, chunks;
  int first_entry;  // of its pages in the page table

  Request() = default;
  __device__ Request(const DecodeParams& p, int raw_length, int first_entry = 0)
      : first_entry(first_entry) {
    length = min(max(raw_length, 0), p.kv_capacity);
    window_begin = 0;
    sink_end = 0;
    sink_chunks = 0;
    if (p.window_left >= 0 && p.window_left + 1 < length) {
      const int begin = length - 1 - p.window_left;
      if (p.sink_tokens < begin) {
        window_begin = begin;
        sink_end = p.sink_tokens;
        sink_chunks = chunks_of(p, sink_end);
      }
    }
    chunks = max(1, sink_chunks + chunks_of(p, length - window_begin));
  }

  // Of a request that fills the cache, without a window.
  __device__ static Request full(const DecodeParams& p) {
    Request request;
    request.length = p.kv_capacity;
    request.window_begin = request.sink_end = request.sink_chunks = request.first_entry = 0;
    request.chunks = p.full_row_chunks.divisor;
    return request;
  }

  __device__ static int chunks_of(const DecodeParams& p, int tokens) {
    return divide(tokens + p.chunk_tokens.divisor - 1, p.chunk_tokens);
  }
  // First key of a chunk, and the end of its piece of the visible keys.
  __device__ int chunk_begin(const DecodeParams& p, int chunk) const {
    const int tokens = p.chunk_tokens.divisor;
    return chunk < sink_chunks ? chunk * tokens : window_begin + (chunk - sink_chunks) * tokens;
  }
  __device__ int chunk_limit(int chunk) const { return chunk < sink_chunks ? sink_end : length; }
};

__device__ __forceinline__ bool even_lengths(const DecodeParams& p) {
  return p.kv_lengths == nullptr || p.batch == 1;
}

// Where keys lie, for code that is compiled for either alone: a short call fetches every instruction cold.
enum class Keys { kContiguous, kPaged, kEither };

template <Keys kKeys = Keys::kEither>
__device__ __forceinline__ Request load_request(const DecodeParams& p, int b) {
  if (kKeys == Keys::kPaged || (kKeys == Keys::kEither && p.pages.indptr != nullptr)) {
    const PagedRequest pages = find_pages(p.pages, b);
    return Request(p, pages.length, pages.first_entry);
  }
  return Request(p, p.kv_lengths == nullptr ? p.kv_capacity : p.kv_lengths[b]);
}

__device__ __forceinline__ int rows_per_request(const DecodeParams& p) {
  return p.kv_heads * p.head_blocks;
}

// Rows of a request in the line of the stream, one behind the other.
__device__ __forceinline__ int line_rows(const DecodeParams& p) {
  return p.lanes.divisor > 1 ? 1 : rows_per_request(p);
}

// Chunks of the requests before `b`. Called by full warps.
template <Keys kKeys = Keys::kEither>
__device__ inline int chunks_before(const DecodeParams& p, int b) {
  if (even_lengths(p)) return load_request<kKeys>(p, 0).chunks * line_rows(p) * b;
  int sum = 0;
#pragma unroll 1
  for (int i = threadIdx.x % 32; i < b; i += 32) sum += load_request<kKeys>(p, i).chunks;
  return __reduce_add_sync(0xffffffffu, sum) * line_rows(p);
}

// The line of all rows: how many chunks it has, and whether every request has as many.
struct Line {
  int total;
  bool even;
};

// Called by full warps.
template <Keys kKeys = Keys::kEither>
__device__ inline Line whole_line(const DecodeParams& p) {
  if (even_lengths(p)) return {chunks_before<kKeys>(p, p.batch), true};
  const int lane = threadIdx.x % 32;
  const int first = load_request<kKeys>(p, 0).chunks;
  int own = 0;
  bool even = true;
#pragma unroll 1
  for (int i = lane; i < p.batch; i += 32) {
    const int chunks = load_request<kKeys>(p, i).chunks;
    own += chunks;
    even = even && chunks == first;
  }
  return {__reduce_add_sync(0xffffffffu, own) * line_rows(p), __all_sync(0xffffffffu, even) != 0};
}

// A request and where its first chunk stands in the line.
struct Place {
  int b;
  int line_begin;
};

// The request that holds chunk `position` of the line. Called by full warps.
template <Keys kKeys = Keys::kEither>
__device__ inline Place find_position(const DecodeParams& p, int position) {
  if (even_lengths(p)) {
    const int per_request = chunks_before<kKeys>(p, 1);
    const int b = p.batch == 1 ? 0 : static_cast<unsigned>(position) / per_request;
    return {b, b * per_request};
  }
  const int lane = threadIdx.x % 32;
  int before = 0;
#pragma unroll 1
  for (int b0 = 0; b0 < p.batch; b0 += 32) {
    const int own =
        b0 + lane < p.batch ? load_request<kKeys>(p, b0 + lane).chunks * line_rows(p) : 0;
    int inclusive = own;
#pragma unroll 1
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, inclusive, offset);
      if (lane >= offset) inclusive += other;
    }
    const unsigned past = __ballot_sync(0xffffffffu, before + inclusive > position);
    if (past != 0) {
      const int found = __ffs(past) - 1;
      return {b0 + found, before + __shfl_sync(0xffffffffu, inclusive - own, found)};
    }
    before += __shfl_sync(0xffffffffu, inclusive, 31);
  }
  return {p.batch, before};  // past the end of the line
}

// The line of at most 32 * kBlocks requests, each of which is looked at once: lane l has requests l, l + 32, ... Called by full
// warps.
template <Keys kKeys, int kBlocks>
class RequestLine {
 public:
  __device__ explicit RequestLine(const DecodeParams& p) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
      own_[i] = load_request<kKeys>(p, min(i * 32 + lane, p.batch - 1)).chunks;
    const int first = __shfl_sync(kAll, own_[0], 0);
    bool even = true;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      even = even && own_[i] == first;
      own_[i] = i * 32 + lane < p.batch ? own_[i] * line_rows(p) : 0;
      sums_[i] = __reduce_add_sync(kAll, own_[i]);
    }
    whole_ = {0, __all_sync(kAll, even) != 0};
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) whole_.total += sums_[i];
  }

  __device__ const Line& whole() const { return whole_; }

  // The request that holds chunk `position`, which the line has.
  __device__ Place find(const DecodeParams& p, int position) const {
    int block = 0, own = own_[0], before = 0, end = sums_[0];
#pragma unroll
    for (int i = 1; i < kBlocks; ++i) {
      if (position < end) continue;
      block = i, own = own_[i], before = end;
      end += sums_[i];
    }
    const int lane = threadIdx.x % 32;
    int inclusive = own;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(kAll, inclusive, offset);
      if (lane >= offset) inclusive += other;
    }
    const int found = __ffs(__ballot_sync(kAll, before + inclusive > position)) - 1;
    return {block * 32 + found, before + __shfl_sync(kAll, inclusive - own, found)};
  }

  // Chunks of the requests before `b`.
  __device__ int before(const DecodeParams& p, int b) const {
    int sum = 0;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
      if (i * 32 + static_cast<int>(threadIdx.x) % 32 < b) sum += own_[i];
    return __reduce_add_sync(kAll, sum);
  }

 private:
  static constexpr unsigned kAll = 0xffffffffu;

  int own_[kBlocks], sums_[kBlocks];
  Line whole_;
};

// Of any number of requests, which are looked at for every question.
template <Keys kKeys>
class RequestLine<kKeys, 0> {
 public:
  __device__ explicit RequestLine(const DecodeParams& p) : whole_(whole_line<kKeys>(p)) {}

  __device__ const Line& whole() const { return whole_; }
  __device__ Place find(const DecodeParams& p, int position) const {
    return find_position<kKeys>(p, position);
  }
  __device__ int before(const DecodeParams& p, int b) const { return chunks_before<kKeys>(p, b); }

 private:
  Line whole_;
};

// The cut of `chunks` chunks into `pieces` contiguous pieces whose sizes differ by at most one.
struct EvenCut {
  unsigned quotient, remainder;

  __device__ int begin(unsigned piece) const { return piece * quotient + min(piece, remainder); }
  __device__ int size(unsigned piece) const { return quotient + (piece < remainder ? 1 : 0); }
  // The piece that holds a chunk; never an empty one.
  __device__ int piece_of(unsigned chunk) const {
    const unsigned in_long_ones = remainder * (quotient + 1);
    return chunk < in_long_ones ? chunk / (quotient + 1)
                                : remainder + (chunk - in_long_ones) / quotient;
  }
};

__device__ __forceinline__ EvenCut even_cut(int chunks, int pieces) {
  const unsigned quotient = static_cast<unsigned>(chunks) / static_cast<unsigned>(pieces);
  return {quotient, chunks - quotient * pieces};
}

// How the stream is cut. Where all requests have as many chunks fewer CTAs may take part, so that rows end with a CTA.
__device__ __forceinline__ EvenCut stream_cut(const DecodeParams& p, const Line& line) {
  const int pieces = divide(line.even ? p.even_ctas : p.ctas, p.lanes);
  return even_cut(line.total, min(pieces, line.total));
}

// A request, key/value head and block of its query heads.
struct Row {
  int b, kv_head, head_block;

  Row() = default;
  // `index` counts the rows of the request.
  __device__ Row(const DecodeParams& p, int b_, int index) : b(b_), kv_head(index), head_block(0) {
    if (p.head_blocks > 1) {
      kv_head = index / p.head_blocks;
      head_block = index - kv_head * p.head_blocks;
    }
  }

  // Moves on to the next row; true if it is another request's.
  __device__ bool advance(const DecodeParams& p) {
    if (p.lanes.divisor > 1) {
      ++b;
      return true;
    }
    if (++head_block < p.head_blocks) return false;
    head_block = 0;
    if (++kv_head < p.kv_heads) return false;
    kv_head = 0;
    ++b;
    return true;
  }
  // The row's first query head, and how many it has: the last block of a group may be short.
  __device__ int query_head(const DecodeParams& p) const {
    return kv_head * p.group + head_block * p.block_heads;
  }
  // The same head counted over the batch: its row of the query, the output and the LSE.
  __device__ int64_t query_row(const DecodeParams& p) const {
    return int64_t{b} * (p.kv_heads * p.group) + query_head(p);
  }
  __device__ int heads(const DecodeParams& p) const {
    return min(p.block_heads, p.group - head_block * p.block_heads);
  }
};

// A walk along the chunks of one CTA.
struct Cursor {
  Request request;
  Row row;
  int chunk;
  int remaining;  // chunks left for this CTA, this one included

  __device__ int begin(const DecodeParams& p) const { return request.chunk_begin(p, chunk); }
  __device__ int limit() const { return request.chunk_limit(chunk); }
  template <Keys kKeys>
  __device__ void advance(const DecodeParams& p) {
    jump<kKeys>(p, 1);
  }
  // Advances by some chunks, at most those that are left of the row.
  template <Keys kKeys>
  __device__ void jump(const DecodeParams& p, int chunks) {
    remaining -= chunks;
    chunk += chunks;
    if (chunk < request.chunks) return;
    chunk = 0;
    if (row.advance(p) && remaining > 0 && p.kv_lengths != nullptr)
      request = load_request<kKeys>(p, row.b);
  }
};

// Where a CTA begins that has no chunk.
__device__ __forceinline__ Cursor no_chunk(const DecodeParams& p) {
  return {Request(p, 0), Row(p, 0, 0), 0, 0};
}

// In the stream, where lengths are even: one request tells of all.
template <Keys kKeys>
__device__ inline Cursor first_chunk_of_even(const DecodeParams& p, unsigned cta) {
  const Request request = load_request<kKeys>(p, 0);
  const unsigned per_request = request.chunks * line_rows(p);
  const int total = per_request * p.batch;
  const EvenCut cut = stream_cut(p, {total, true});
  const unsigned piece = divide(cta, p.lanes), own_lane = cta - piece * p.lanes.divisor;
  const unsigned position = cut.begin(piece);
  if (position >= static_cast<unsigned>(total)) return no_chunk(p);
  const unsigned b = p.batch == 1 ? 0 : position / per_request;
  const unsigned offset = position - b * per_request;
  const unsigned row = offset / static_cast<unsigned>(request.chunks);
  return {request, Row(p, b, row + own_lane), static_cast<int>(offset - row * request.chunks),
          cut.size(piece)};
}

// In the stream of at most 32 requests: every lane looks one of them up, once. Called by full warps.
template <Keys kKeys>
__device__ inline Cursor first_chunk_of_few(const DecodeParams& p, unsigned cta) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  Request request = load_request<kKeys>(p, min(lane, p.batch - 1));
  const int own = lane < p.batch ? request.chunks * line_rows(p) : 0;
  int end = own;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(kAll, end, offset);
    if (lane >= offset) end += other;
  }
  const int total = __shfl_sync(kAll, end, 31);
  const int first = __shfl_sync(kAll, own, 0);
  const bool even = __all_sync(kAll, lane >= p.batch || own == first);
  const EvenCut cut = stream_cut(p, {total, even});
  const unsigned piece = divide(cta, p.lanes), own_lane = cta - piece * p.lanes.divisor;
  const int position = cut.begin(piece);
  if (position >= total) return no_chunk(p);
  const int b = __ffs(__ballot_sync(kAll, end > position)) - 1;
  const unsigned offset = position - __shfl_sync(kAll, end - own, b);
  request.length = __shfl_sync(kAll, request.length, b);
  request.window_begin = __shfl_sync(kAll, request.window_begin, b);
  request.sink_end = __shfl_sync(kAll, request.sink_end, b);
  request.sink_chunks = __shfl_sync(kAll, request.sink_chunks, b);
  request.chunks = __shfl_sync(kAll, request.chunks, b);
  request.first_entry = __shfl_sync(kAll, request.first_entry, b);
  const unsigned row = offset / static_cast<unsigned>(request.chunks);
  return {request, Row(p, b, row + own_lane), static_cast<int>(offset - row * request.chunks),
          cut.size(piece)};
}

// In the stream of more.
template <Keys kKeys, int kBlocks>
__device__ inline Cursor first_chunk_of_many(const DecodeParams& p, unsigned cta) {
  const RequestLine<kKeys, kBlocks> line(p);
  const EvenCut cut = stream_cut(p, line.whole());
  const unsigned piece = divide(cta, p.lanes), own_lane = cta - piece * p.lanes.divisor;
  const int position = cut.begin(piece);
  if (position >= line.whole().total) return no_chunk(p);
  const Place place = line.find(p, position);
  const Request request = load_request<kKeys>(p, place.b);
  const unsigned offset = position - place.line_begin;
  const unsigned row = offset / static_cast<unsigned>(request.chunks);
  const int chunk = offset - row * request.chunks;
  return {request, Row(p, place.b, row + own_lane), chunk, cut.size(piece)};
}

// Where a CTA begins. Called by full warps.
template <Keys kKeys>
__device__ inline Cursor first_chunk(const DecodeParams& p, unsigned cta) {
  const unsigned rows = rows_per_request(p);
  if (p.splits == 0 && p.kv_lengths == nullptr && p.window_left < 0) {
    const EvenCut cut{static_cast<unsigned>(p.full_piece),
                      static_cast<unsigned>(p.full_longer_pieces)};
    const unsigned piece = divide(cta, p.lanes), own_lane = cta - piece * p.lanes.divisor;
    const int position = cut.begin(piece);
    const unsigned line_row = divide(position, p.full_row_chunks);
    const unsigned b = divide(line_row, p.full_request_rows);
    const int chunk = position - line_row * p.full_row_chunks.divisor;
    const unsigned row = line_row - b * p.full_request_rows.divisor + own_lane;
    return {Request::full(p), Row(p, b, row), chunk, cut.size(piece)};
  }
  if (p.splits > 0) {
    const unsigned line_row = cta / static_cast<unsigned>(p.splits);
    const unsigned b = p.batch == 1 ? 0 : line_row / rows;
    const Request request = load_request<kKeys>(p, b);
    const EvenCut cut = even_cut(request.chunks, p.splits);
    const unsigned piece = cta - line_row * p.splits;
    return {request, Row(p, b, line_row - b * rows), cut.begin(piece), cut.size(piece)};
  }
  if (even_lengths(p)) return first_chunk_of_even<kKeys>(p, cta);
  if (p.batch <= 32) return first_chunk_of_few<kKeys>(p, cta);
  if (p.batch <= 64) return first_chunk_of_many<kKeys, 2>(p, cta);
  if (p.batch <= 256) return first_chunk_of_many<kKeys, 8>(p, cta);
  return first_chunk_of_many<kKeys, 0>(p, cta);
}

// Where a partial result of one query head goes: to the workspace, or to shared memory for the cluster.
struct Partial {
  float* out;    // [head_dim]
  float* stats;  // maximum and sum, base 2
};

__device__ __forceinline__ Partial workspace_partial(const DecodeParams& p, int64_t slot,
                                                     int slot_head) {
  const int64_t head = slot * p.slot_heads + slot_head;
  return {p.partial_out + head * p.head_dim, p.partial_stats + 2 * head};
}

// With a fixed split count, head blocks of a row share the slot of its whole group.
__device__ __forceinline__ int first_slot_head(const DecodeParams& p, int head_block) {
  return p.splits > 0 ? head_block * p.block_heads : 0;
}

// Where the parts of a row that several CTAs share lie, in the order in which they are added.
struct Parts {
  int count;
  int64_t first_slot, second_slot;
  int slot_step;  // from the second on

  __device__ int64_t slot(int i) const {
    return i == 0 ? first_slot : second_slot + int64_t{i - 1} * slot_step;
  }
};

// With a fixed split count.
__device__ inline Parts fixed_parts(const DecodeParams& p, const Row& row, int chunks) {
  const int64_t line_row = int64_t{row.b} * p.kv_heads + row.kv_head;
  const int64_t first = line_row * p.splits;
  return {min(p.splits, chunks), first, first + 1, 1};
}

// In the stream a CTA leaves at most two: in its even slot the end or middle of a row that began before, in
// its odd slot the beginning of a row that goes on.
__device__ inline Parts stream_parts(const DecodeParams& p, const EvenCut& cut, int row_begin,
                                     int chunks, int lane) {
  const int first = cut.piece_of(row_begin);
  const int last = cut.piece_of(row_begin + chunks - 1);
  const int lanes = p.lanes.divisor;
  const int64_t cta = int64_t{first} * lanes + lane;
  return {last - first + 1, 2 * cta + 1, 2 * (cta + lanes), 2 * lanes};
}

}  // namespace jax_baracuda
