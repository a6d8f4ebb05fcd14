// Where a sequence lies in the operands, and which of its keys a query row sees.
#pragma once

#include "attention/params.h"
#include "device/page_table.cuh"

namespace jax_baracuda {

// Rows of one sequence. Row i of it is row q_first + i of the operands (over all packs).
struct Sequence {
  int index;  // of NB
  int pack;
  int64_t q_first, k_first;
  int first_entry;     // of its keys in a page table
  int q_rows, k_rows;  // its own, which set the diagonal
  int q_len, kv_len;   // how many of them count
};

__device__ __forceinline__ int clamped(int x, int low, int high) { return min(max(x, low), high); }

// Where the query rows of a sequence lie in its pack, from its entry of cu_seqlens_q.
struct PackedRows {
  int first, count;
};

__device__ __forceinline__ PackedRows packed_rows(const AttentionProblem& p, int at) {
  const int first = clamped(p.cu_seqlens_q[at], 0, p.q_rows);
  return {first, clamped(p.cu_seqlens_q[at + 1], first, p.q_rows) - first};
}

// What find_sequence() finds of a request with its keys in pages, in fewer registers: there is one pack, and there are no
// lengths beside the table's.
__device__ __forceinline__ Sequence find_request(const AttentionProblem& p, int index) {
  const PackedRows rows = packed_rows(p, index);
  const PagedRequest pages = find_pages(p.pages, index);
  Sequence s;
  s.index = index;
  s.pack = 0;
  s.q_first = rows.first;
  s.k_first = 0;
  s.first_entry = pages.first_entry;
  s.q_rows = s.q_len = rows.count;
  s.k_rows = s.kv_len = pages.length;
  return s;
}

__device__ __forceinline__ Sequence find_sequence(const AttentionProblem& p, int index) {
  Sequence s;
  s.index = index;
  s.pack = index / p.sequences;
  s.q_first = static_cast<int64_t>(s.pack) * p.q_rows;
  s.k_first = static_cast<int64_t>(s.pack) * p.k_rows;
  s.q_rows = p.q_rows;
  s.k_rows = p.k_rows;
  const int at = index + s.pack;  // each pack has one entry more than sequences
  if (p.cu_seqlens_q) {
    const PackedRows rows = packed_rows(p, at);
    s.q_rows = rows.count;
    s.q_first += rows.first;
  }
  if (p.pages.indptr) {
    const PagedRequest request = find_pages(p.pages, index);
    s.first_entry = request.first_entry;
    s.k_rows = request.length;
  } else if (p.cu_seqlens_k) {
    const int begin = clamped(p.cu_seqlens_k[at], 0, p.k_rows);
    s.k_rows = clamped(p.cu_seqlens_k[at + 1], begin, p.k_rows) - begin;
    s.k_first += begin;
  }
  s.q_len = p.query_lengths ? clamped(p.query_lengths[index], 0, s.q_rows) : s.q_rows;
  s.kv_len = p.kv_lengths ? clamped(p.kv_lengths[index], 0, s.k_rows) : s.k_rows;
  if (p.cu_seqlens_q && p.bias.type != BiasType::kNone) {  // a sequence longer than was said
    s.q_len = min(s.q_len, p.bias.rows);
    s.kv_len = min(s.kv_len, p.bias.keys);
  }
  return s;
}

// The part of the mask that positions decide. Row i lies on the diagonal at key i + offset.
struct Visibility {
  int q_len, kv_len, offset;
  int window_left, window_right, sink_tokens;
  bool causal;

  Visibility() = default;
  __device__ __forceinline__ Visibility(const AttentionProblem& p, const Sequence& s)
      : q_len(s.q_len),
        kv_len(s.kv_len),
        offset(p.top_left ? 0 : s.k_rows - s.q_rows),
        window_left(p.window_left),
        window_right(p.window_right),
        sink_tokens(p.sink_tokens),
        causal(p.causal) {}

  __device__ __forceinline__ bool has_window() const {
    return window_left >= 0 || window_right >= 0;
  }

  __device__ __forceinline__ bool operator()(int i, int j) const {
    const int from_diagonal = j - i - offset;
    bool seen = (window_left < 0 || from_diagonal >= -window_left) &&
                (window_right < 0 || from_diagonal <= window_right);
    seen = (seen || j < sink_tokens) && (!causal || from_diagonal <= 0);
    return seen && i < q_len && j < kv_len;
  }

  // Keys that rows [i0, i1) may see: [0, sink_end) and [begin, end), with sink_end <= begin.
  struct Keys {
    int sink_end, begin, end;
  };
  __device__ __forceinline__ Keys keys_of_rows(int i0, int i1) const {
    i1 = min(i1, q_len);
    if (i0 >= i1) return {0, 0, 0};
    const int last = i1 - 1 + offset;
    const int limit = causal ? min(kv_len, last + 1) : kv_len;
    const int end = max(0, window_right < 0 ? limit : min(limit, last + window_right + 1));
    const int begin = window_left < 0 ? 0 : clamped(i0 + offset - window_left, 0, end);
    return {has_window() ? max(0, min(sink_tokens, limit)) : 0, begin, end};
  }

  // Rows that may see some key of [j0, j1): one range, sink tokens included.
  struct Rows {
    int begin, end;
  };
  __device__ __forceinline__ Rows rows_of_keys(int j0, int j1) const {
    j1 = min(j1, kv_len);
    if (j0 >= j1) return {0, 0};
    const bool sinks = j0 < sink_tokens;
    int begin = 0, end = q_len;
    if (causal) begin = max(begin, j0 - offset);
    if (window_right >= 0 && !sinks) begin = max(begin, j0 - offset - window_right);
    if (window_left >= 0 && !sinks) end = min(end, j1 - offset + window_left);
    return {min(begin, max(end, 0)), max(end, 0)};
  }
};

// What segment ids say of a block of rows and a block of keys.
enum class Overlap { kNone, kSome, kAll };

struct Segments {
  const int32_t *q, *k;           // of the sequence's first row and key; null: no segments
  const int2 *q_range, *k_range;  // of kSegmentBlock rows; null in packed calls

  Segments() = default;
  __device__ __forceinline__ Segments(const AttentionProblem& p, const Sequence& s)
      : q(p.query_segments ? p.query_segments + s.q_first : nullptr),
        k(p.query_segments ? p.kv_segments + s.k_first : nullptr),
        q_range(nullptr),
        k_range(nullptr) {
    if (!p.query_segment_range) return;
    const int q_blocks = (p.q_rows + kSegmentBlock - 1) / kSegmentBlock;
    const int k_blocks = (p.k_rows + kSegmentBlock - 1) / kSegmentBlock;
    q_range = p.query_segment_range + static_cast<int64_t>(s.pack) * q_blocks;
    k_range = p.kv_segment_range + static_cast<int64_t>(s.pack) * k_blocks;
  }

  __device__ __forceinline__ bool any() const { return q != nullptr; }

  static __device__ __forceinline__ int2 range(const int2* ranges, int begin, int end) {
    int2 r = ranges[begin / kSegmentBlock];
    for (int block = begin / kSegmentBlock + 1; block * kSegmentBlock < end; ++block) {
      const int2 other = ranges[block];
      r.x = min(r.x, other.x);
      r.y = max(r.y, other.y);
    }
    return r;
  }

  // Rows [i0, i1) against keys [j0, j1), both within the operands and not empty.
  __device__ __forceinline__ Overlap overlap(int i0, int i1, int j0, int j1) const {
    if (!q) return Overlap::kAll;
    if (!q_range) return Overlap::kSome;
    const int2 rows = range(q_range, i0, i1), keys = range(k_range, j0, j1);
    if (rows.y < keys.x || keys.y < rows.x) return Overlap::kNone;
    return rows.x == rows.y && keys.x == keys.y ? Overlap::kAll : Overlap::kSome;
  }
};

}  // namespace jax_baracuda
