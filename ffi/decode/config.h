// The split heuristic and the choice of a kernel. Host code without CUDA, unit-tested through
// _ffi.decode_plan.
#pragma once

#include <algorithm>
#include <cstdint>

#include "decode/params.h"

namespace jax_baracuda {

// A warp's share of shared memory in the merge at the end of a row, and the query it reads.
inline constexpr int kMergePad = 4;  // floats between heads, so that heads fall in different banks

// Warps of a CTA. A kernel's register budget follows from it: 65536 registers over so many threads.
inline constexpr int kMaxSlices = 8;
constexpr int max_warps(DType dtype, int dim_tile, int head_tile, bool vector) {
  return dtype != DType::kF32 && dim_tile <= 128 && head_tile == 8 && vector ? 12 : 8;
}

inline constexpr int kMaxSplits = 1024;
inline constexpr int kWideCluster = 8;  // CTAs of a wide cluster

constexpr int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Keys that one warp holds in registers at a time: 8 KB of K and V, 16 KB for the widest 16-bit heads.
constexpr int warp_tokens(DType dtype, int dim_tile) {
  if (dtype == DType::kF32) return 1024 / dim_tile;
  return dim_tile == 64 ? 32 : 16;
}

// Warps that take different keys, where `slices` warps already share the same ones: at least four in all.
constexpr int token_warps_for(int slices) { return slices >= 4 ? 1 : ceil_div(4, slices); }

// One merge buffer, in floats: the results of all warps and their statistics.
constexpr int merge_floats(int block_heads, int token_warps, int dim_tile) {
  return (block_heads * token_warps * (dim_tile + kMergePad + 2) + 3) / 4 * 4;
}

// Quads, of four elements of a query head, that a CTA of a cluster finishes; with its maximum and sum it has so many bytes.
inline constexpr int kQuadBytes = (4 + 2) * 4;
constexpr int cluster_quads(int block_heads, int dim_tile, int pieces) {
  return ceil_div(block_heads * (dim_tile / 4), pieces);
}

// `pieces`: CTAs of a cluster, which send each other their quads with maximum and sum; 1: there is no cluster.
constexpr int decode_shared_bytes(DType dtype, int dim_tile, int head_tile, int slices,
                                  int token_warps, int block_heads, int merge_buffers, int pieces) {
  const int heads = slices * head_tile;
  const int query = 2 * heads * dim_tile * element_bytes(dtype);
  const int merge = merge_buffers * merge_floats(block_heads, token_warps, dim_tile) * 4;
  const int received =
      pieces == 1 ? 0 : pieces * cluster_quads(block_heads, dim_tile, pieces) * kQuadBytes;
  const int barrier = 8;
  const int slopes = 2 * heads * 4;
  return query + merge + received + barrier + slopes;
}

// A tile of a ring: keys, and values of which every fourth row is followed by 32 bytes of nothing.
constexpr int ring_stage_bytes(DType dtype, int dim_tile) {
  const int tokens = warp_tokens(dtype, dim_tile);
  return 2 * tokens * dim_tile * element_bytes(dtype) + tokens / 4 * 32;
}

// Two merge buffers where that does not cost occupancy.
inline constexpr int kMostSharedForTwoBuffers = 48 * 1024;
inline constexpr int kMostClusterShared = 227 * 1024;

inline void set_token_warps(const DecodeShape& s, int token_warps, int pieces, DecodeConfig& c,
                            int most_buffers = 2) {
  c.token_warps = token_warps;
  c.chunk_tokens = token_warps * warp_tokens(s.dtype, c.dim_tile);
  const auto bytes = [&](int buffers) {
    return decode_shared_bytes(s.dtype, c.dim_tile, c.head_tile, c.slices, token_warps,
                               c.block_heads, buffers, pieces);
  };
  // A CTA of a cluster has one row.
  const bool two = pieces == 1 && most_buffers == 2 && bytes(2) <= kMostSharedForTwoBuffers;
  c.merge_buffers = two ? 2 : 1;
  c.shared_bytes = bytes(c.merge_buffers);
}

// The layout of a CTA; nothing here depends on the batch, so that a fixed split count gives a request
// the same bits whatever else is in the batch.
inline DecodeConfig choose_layout(const DecodeShape& s) {
  DecodeConfig c;
  c.vector = (s.head_dim * element_bytes(s.dtype)) % 16 == 0;
  c.paged = s.paged;
  c.dim_tile = s.head_dim <= 64 ? 64 : s.head_dim <= 128 ? 128 : 256;
  if (s.dtype == DType::kF32) {
    c.head_tile = 4;
  } else {
    c.head_tile = s.group > 8 && c.dim_tile <= 128 && c.vector ? 16 : 8;
  }
  c.head_blocks = ceil_div(s.group, c.head_tile * kMaxSlices);
  c.block_heads = ceil_div(s.group, c.head_blocks);
  c.slices = ceil_div(c.block_heads, c.head_tile);
  set_token_warps(s, token_warps_for(c.slices), 1, c);
  return c;
}

// Query heads that a partial result holds: with a fixed split count those of the whole group, whose
// head blocks share it.
constexpr int partial_heads(const DecodeShape& s, const DecodeConfig& c) {
  return s.num_splits > 0 ? s.group : c.block_heads;
}
constexpr int64_t partial_bytes(const DecodeShape& s, const DecodeConfig& c) {
  return int64_t{4} * partial_heads(s, c) * (s.head_dim + 2);
}

// Chunks of a row whose request fills the cache.
constexpr int full_row_chunks(const DecodeShape& s, const DecodeConfig& c) {
  return std::max(1, ceil_div(s.kv_capacity, c.chunk_tokens));
}

// Bytes of the keys and values of a row whose request fills the cache.
constexpr int64_t full_row_bytes(const DecodeShape& s) {
  return int64_t{2} * s.kv_capacity * s.head_dim * element_bytes(s.dtype);
}

// Bytes of the keys and values of all rows at most. Pages may be anyone's, but all requests together have no more of them
// than the table has entries, and that is what the capacity of one is.
constexpr int64_t most_bytes(const DecodeShape& s, int64_t rows) {
  return full_row_bytes(s) * (s.paged ? rows / s.batch : rows);
}

// The largest rows for which a wide cluster is faster than the stream and its second kernel (docs/decode.md).
inline constexpr int64_t kMostWideBytes = 512 * 1024;
inline constexpr int64_t kMostWideRingBytes = 1024 * 1024;
inline constexpr int64_t kMostWideRingBytes64 = 512 * 1024;  // at head_dim 64
inline constexpr int64_t kMostWidePagedBytes = 2 * 1024 * 1024;

// Whether wide clusters, of which `at_once` run at once, leave not too much of the device idle.
inline bool wide_clusters_fit(const DecodeShape& s, const DecodeDevice& device,
                              const DecodeConfig& c, int64_t rows, int at_once) {
  return full_row_chunks(s, c) >= kWideCluster && rows <= at_once &&
         rows * kWideCluster * 4 >= device.sms;
}

// How many CTAs to give every row as a cluster: no partial results in memory and no second kernel; 1: none. It takes rows
// whose lengths cannot differ (a cluster cannot help another one) and clusters that all run at once. Pairs shall fill the
// device, wide clusters are for short problems.
inline int cluster_pieces(const DecodeShape& s, const DecodeDevice& device, const DecodeConfig& c,
                          int64_t rows) {
  if (s.uneven_lengths || c.head_blocks > 1) return 1;
  if (full_row_chunks(s, c) >= 2 && rows <= device.pairs && rows * 2 * 4 >= int64_t{device.sms} * 3)
    return 2;
  const bool wide = wide_clusters_fit(s, device, c, rows, device.wide_clusters);
  return wide && full_row_bytes(s) <= kMostWideBytes ? kWideCluster : 1;
}

// Makes every row a cluster's, if that fits: one CTA an SM, so with as many warps as its keys can feed if `all_warps`.
inline bool use_clusters(const DecodeShape& s, int pieces, bool all_warps, DecodeConfig& c) {
  int token_warps = c.token_warps;
  if (all_warps) {
    const int most = max_warps(s.dtype, c.dim_tile, c.head_tile, c.vector) / c.slices;
    const int wanted = ceil_div(s.kv_capacity, pieces * warp_tokens(s.dtype, c.dim_tile));
    while (token_warps + 4 <= most && token_warps < wanted) token_warps += 4;
  }
  DecodeConfig clustered = c;
  set_token_warps(s, token_warps, pieces, clustered);
  if (clustered.shared_bytes > kMostClusterShared) return false;
  clustered.splits = pieces;
  clustered.cluster = true;
  c = clustered;
  return true;
}

// Warps of a CTA that reads through rings, tiles of each ring, and CTAs that an SM shall hold.
struct RingForm {
  int warps, stages, ctas_per_sm;
};
inline constexpr int kMaxRingWarps = 8;
inline constexpr int kReservedShared = 1024;  // of every CTA, by the system

// Whether there is a kernel that reads this cache through rings.
inline bool has_rings(const DecodeShape& s, const DecodeConfig& c) {
  return s.adjacent_rows && s.dtype != DType::kF32 && c.head_tile == 8 && c.slices == 1 &&
         c.head_blocks == 1 && s.head_dim == c.dim_tile;
}

// A page table that is brought to shared memory: entries at most.
inline constexpr int kMostTableEntries = 768;

// Puts the page table behind the rings of a cluster, if it is small and fits.
inline void place_table(const DecodeShape& s, const DecodeDevice& device, int ctas_per_sm,
                        DecodeConfig& c) {
  const int with_table = c.shared_bytes + s.table_entries * 4;
  if (s.table_entries == 0 || s.table_entries > kMostTableEntries ||
      (with_table + kReservedShared) * ctas_per_sm > device.ring_shared)
    return;
  c.table_offset = c.shared_bytes;
  c.shared_bytes = with_table;
}

// Lets the warps read through rings, if these fit.
inline bool use_rings(const DecodeShape& s, const DecodeDevice& device, RingForm form, int pieces,
                      DecodeConfig& c) {
  DecodeConfig ring = c;
  set_token_warps(s, form.warps, pieces, ring, 1);
  ring.ring_stages = form.stages;
  ring.ring_offset = (ring.shared_bytes + 127) / 128 * 128;
  const int tile = ring_stage_bytes(s.dtype, c.dim_tile) + 8;  // with its barrier
  ring.shared_bytes = ring.ring_offset + form.warps * form.stages * tile;
  if ((ring.shared_bytes + kReservedShared) * form.ctas_per_sm > device.ring_shared) return false;
  if (pieces > 1) place_table(s, device, form.ctas_per_sm, ring);
  c = ring;
  return true;
}

// Gives every row a wide cluster that reads through rings, if that fits.
inline bool use_wide_rings(const DecodeShape& s, const DecodeDevice& device, int64_t rows,
                           DecodeConfig& c) {
  const int64_t most = s.paged            ? kMostWidePagedBytes
                       : c.dim_tile == 64 ? kMostWideRingBytes64
                                          : kMostWideRingBytes;
  if (s.uneven_lengths || full_row_bytes(s) > most || c.dim_tile > 128 ||
      !wide_clusters_fit(s, device, c, rows, device.wide_ring_clusters) ||
      !use_rings(s, device, {8, 3, 1}, kWideCluster, c))
    return false;
  c.splits = kWideCluster;
  c.cluster = true;
  return true;
}

// Gives every row a pair of CTAs that read through rings, where pairs are nearly as many as SMs hold.
inline constexpr int64_t kMostPairRingBytes = int64_t{1} << 30;  // of all rows
inline constexpr int64_t kMostRowBytesForTwoTiles = 512 * 1024;  // of a row
inline bool use_pair_rings(const DecodeShape& s, const DecodeDevice& device, int64_t rows,
                           DecodeConfig& c) {
  const int tiles = full_row_bytes(s) <= kMostRowBytesForTwoTiles ? 2 : 3;
  if (!has_rings(s, c) || c.dim_tile != 128 || rows * 2 * 16 < int64_t{device.sms} * 15 ||
      most_bytes(s, rows) > kMostPairRingBytes || !use_rings(s, device, {8, tiles, 1}, 2, c))
    return false;
  c.splits = 2;
  c.cluster = true;
  return true;
}

// Between how many bytes a stream is read through rings: caches so large that their start matters little, and so small that it
// is not yet all the same how the bytes come; for pages, which take longer to begin with, also smaller ones (docs/decode.md).
// `few`: rows at most half as many as SMs; `many`: at least twice as many. What counts is the capacity, of which uneven lengths may use little.
struct ByteRange {
  int64_t least, most;
};
inline ByteRange ring_range(const DecodeShape& s, const DecodeConfig& c, bool few, bool many) {
  constexpr int64_t kMiB = 1 << 20;
  if (s.paged) {
    if (c.dim_tile != 128) return {6 * kMiB, few ? 48 * kMiB : 0};
    return {(few ? 6 : 48) * kMiB, (many ? 272 : 136) * kMiB};
  }
  if (c.dim_tile == 256 || (c.dim_tile == 64 && s.uneven_lengths)) return {24 * kMiB, 96 * kMiB};
  if (s.uneven_lengths) return {24 * kMiB, (few ? 512 : 192) * kMiB};
  return c.dim_tile == 64 ? ByteRange{6 * kMiB, 256 * kMiB} : ByteRange{12 * kMiB, 512 * kMiB};
}

// Pages of many rows: so short on average, their ends cost more than rings gain.
inline constexpr int64_t kLeastRingRowBytes = 256 * 1024;
// From so many bytes on, of even lengths, the form with more tiles is faster.
inline constexpr int64_t kMostForTwoCtas = 256 * 1024 * 1024;

// Rings in the stream, where they are faster. How many CTAs an SM then holds; 0: no rings.
inline int use_stream_rings(const DecodeShape& s, const DecodeDevice& device, int64_t rows,
                            DecodeConfig& c) {
  const bool few = 2 * rows <= device.sms;
  const ByteRange range = ring_range(s, c, few, rows >= 2 * device.sms);
  const int64_t bytes = most_bytes(s, rows);
  if (bytes < range.least || bytes > range.most) return 0;
  if (s.paged && !few && bytes < rows * kLeastRingRowBytes) return 0;
  const bool two = s.uneven_lengths || bytes <= kMostForTwoCtas;
  const RingForm form = c.dim_tile == 256 ? RingForm{4, 3, 1}
                        : two             ? RingForm{4, 2, 2}
                                          : RingForm{8, 3, 1};
  return use_rings(s, device, form, 1, c) ? form.ctas_per_sm : 0;
}

// CTAs, so many an SM, that each take as many whole rows and leave little of the device idle; 0: there is no such number.
inline int64_t whole_row_ctas(const DecodeDevice& device, int64_t rows, int ctas_per_sm) {
  const int64_t places = int64_t{device.sms} * ctas_per_sm;
  const int64_t each = ceil_div(rows, places);
  return rows % each == 0 && rows / each * 16 >= places * 15 ? rows / each : 0;
}

// Whether the CTAs of the stream begin and end with a row, so that they leave no partial results.
inline bool takes_whole_rows(const DecodeShape& s, const DecodeConfig& c, int64_t rows) {
  return c.splits == 0 && !s.uneven_lengths && rows % c.ctas == 0;
}

// Rows of one length, as many for each CTA: no second kernel, and each row ends once (docs/decode.md). A row shall be so long
// that its end is not what counts.
inline constexpr int64_t kLeastWholeRowBytes = 128 * 1024;
inline constexpr int64_t kMostWholeRingBytes = int64_t{768} << 20;   // of all rows
inline constexpr int64_t kMostRowBytesForTwoCtas = 2 * 1024 * 1024;  // of a row, without rings
inline constexpr int64_t kLeastSideBySideBytes = 1024 * 1024;        // of a row, without rings

inline bool use_whole_rows(const DecodeShape& s, const DecodeDevice& device, int64_t rows,
                           DecodeConfig& c) {
  constexpr int kWarps = 12;  // that an SM holds
  if (s.uneven_lengths || c.slices > 1 || c.head_blocks > 1 ||
      max_warps(s.dtype, c.dim_tile, c.head_tile, c.vector) != kWarps ||
      full_row_bytes(s) < kLeastWholeRowBytes)
    return false;
  const int64_t one = whole_row_ctas(device, rows, 1), two = whole_row_ctas(device, rows, 2);
  const bool small = most_bytes(s, rows) <= kMostWholeRingBytes;
  if (one > 0 && small && c.dim_tile == 128 && has_rings(s, c) &&
      use_rings(s, device, {8, 2, 1}, 1, c)) {
    c.ctas = one;
    return true;
  }
  const bool pair = two > 0 && full_row_bytes(s) <= kMostRowBytesForTwoCtas;
  if (!pair && one == 0) return false;
  set_token_warps(s, !pair ? kWarps : small ? kWarps / 3 : kWarps / 2, 1, c);
  c.ctas = pair ? two : one;
  if (full_row_bytes(s) >= kLeastSideBySideBytes && c.ctas % s.kv_heads == 0) c.lanes = s.kv_heads;
  return true;
}

inline int64_t workspace_bytes(const DecodeShape& s, const DecodeConfig& c) {
  return c.partial_slots * partial_bytes(s, c);
}

// CTAs of a stream whose rings leave room for two an SM, where rows are of one length: so that rows end with a CTA, if that leaves
// little idle and is faster (docs/decode.md); 0: as many as for others.
inline int64_t even_stream_ctas(const DecodeShape& s, const DecodeDevice& device, int64_t rows) {
  if (const int64_t whole = whole_row_ctas(device, rows, 2)) return whole;
  const int64_t places = int64_t{device.sms} * 2;
  const int64_t even = s.paged || rows > places ? 0 : places / rows * rows;
  return even * 16 >= places * 15 ? even : 0;
}
// The device looks at so many requests for whether they are equally long.
inline constexpr int kMostRequestsForEvenCtas = 32;

inline constexpr int64_t kMostSideBySideBytes = int64_t{4} << 30;  // of contiguous caches

// Whether the CTAs of the stream take the rows of a request side by side: pieces of the line of requests, one CTA a row. Those that
// read the same pages of different heads at the same time are then neighbours.
inline bool takes_rows_side_by_side(const DecodeShape& s, const DecodeConfig& c, int64_t rows) {
  const int64_t lanes = rows / s.batch;
  const bool helps = s.paged || (s.uneven_lengths && most_bytes(s, rows) <= kMostSideBySideBytes);
  return helps && c.ctas / lanes * lanes * 16 >= c.ctas * 15;
}

// Pieces of the line of requests, of which so many fit: of pages that are not too many a few less, if requests of one length then
// end with a piece.
inline constexpr int64_t kMostBytesForEvenPieces = int64_t{384} << 20;
inline int64_t side_by_side_pieces(const DecodeShape& s, int64_t rows, int64_t most) {
  if (!s.paged || most_bytes(s, rows) > kMostBytesForEvenPieces) return most;
  for (int64_t pieces = most; pieces * 16 >= most * 15; --pieces)
    if (pieces > 0 && s.batch % pieces == 0) return pieces;
  return most;
}

// Pages of many rows, in more bytes than rings are for: two CTAs of six warps an SM.
inline bool use_two_paged_ctas(const DecodeShape& s, const DecodeDevice& device, int64_t rows,
                               DecodeConfig& c) {
  constexpr int kWarps = 12;  // that an SM holds
  if (!s.paged || rows < 2 * device.sms || c.slices > 1 || c.head_blocks > 1 ||
      max_warps(s.dtype, c.dim_tile, c.head_tile, c.vector) != kWarps)
    return false;
  set_token_warps(s, kWarps / 2, 1, c);
  return true;
}

// All CTAs take equal pieces of the line of rows. `slots`: partial results that the workspace can hold.
inline void use_stream(const DecodeShape& s, const DecodeDevice& device, int64_t rows,
                       int64_t slots, DecodeConfig& c) {
  const int ring_ctas = has_rings(s, c) ? use_stream_rings(s, device, rows, c) : 0;
  const int ctas_per_sm = ring_ctas > 0                            ? ring_ctas
                          : use_two_paged_ctas(s, device, rows, c) ? 2
                                                                   : device.ctas_per_sm;
  const int64_t row_chunks = full_row_chunks(s, c);
  c.ctas = std::min({int64_t{device.sms} * ctas_per_sm, rows * row_chunks, slots / 2});
  if (takes_rows_side_by_side(s, c, rows)) {
    c.lanes = static_cast<int>(rows / s.batch);
    c.ctas = side_by_side_pieces(s, rows, c.ctas / c.lanes) * c.lanes;
  }
  const int64_t even = ring_ctas == 2 ? even_stream_ctas(s, device, rows) : 0;
  if (even > 0 && even < c.ctas) {
    if (!s.uneven_lengths)
      c.ctas = even;
    else if (s.batch <= kMostRequestsForEvenCtas)
      c.even_ctas = even;
  }
  // One chunk a row, or no room for partial results: every row is one CTA's.
  if (row_chunks == 1 || c.ctas < 1) {
    c.splits = 1;
    c.lanes = 1;
  }
}

inline void choose_schedule(const DecodeShape& s, const DecodeDevice& device, int64_t slots,
                            DecodeConfig& c) {
  const int64_t rows = int64_t{s.batch} * s.kv_heads * c.head_blocks;
  c.splits = s.num_splits;
  c.cluster = false;
  c.even_ctas = 0;
  if (c.splits == 0) {
    const int pieces = cluster_pieces(s, device, c, rows);
    const bool pairs = pieces == 2;
    const bool clustered = (pairs && use_pair_rings(s, device, rows, c)) ||
                           (!pairs && has_rings(s, c) && use_wide_rings(s, device, rows, c)) ||
                           (pieces > 1 && use_clusters(s, pieces, pairs, c));
    if (!clustered && !use_whole_rows(s, device, rows, c)) use_stream(s, device, rows, slots, c);
  } else if (c.splits == 2 && device.pairs > 0) {
    use_clusters(s, 2, false, c);
  }
  if (c.splits != 0) c.ctas = rows * c.splits;
  if (c.even_ctas == 0) c.even_ctas = c.ctas;
  const bool whole = c.splits == 1 || c.cluster || takes_whole_rows(s, c, rows);
  c.partial_slots = whole           ? 0
                    : c.splits == 0 ? 2 * c.ctas
                                    : int64_t{s.batch} * s.kv_heads * c.splits;
}

}  // namespace jax_baracuda
