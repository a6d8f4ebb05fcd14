// What the attention kernels need to know. Plain data: host and device read the same structs.
#pragma once

#include <vector_types.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/page_table.h"

namespace jax_baracuda {

enum class BiasType { kNone, kF16, kBF16, kF32, kMask };  // kMask: one byte a key, 0 hides it

// The additive bias [1|NB, 1|Hq, 1|S, K]; a stride of 0 repeats the only entry.
struct AttentionBias {
  const void* data;
  BiasType type;
  int64_t sequence_stride, head_stride, row_stride;  // in elements
  int rows, keys;  // of packed calls: no sequence may reach past them
};

// Everything but the pass: shapes, strides, options. A sequence is a batch entry of a dense call, or one
// of the `sequences` that each of the `packs` rows of packed tokens holds. Rows of q and o are counted
// over packs: row r of pack p is row p * q_rows + r.
struct AttentionProblem {
  const void* query;
  const void* key;
  const void* value;

  AttentionBias bias;
  const float* sinks;         // null: none; a row of Hq every sinks_stride (0: one row for all)
  const float* alibi_slopes;  // the same
  int64_t sinks_stride, alibi_stride;
  const int32_t* query_lengths;  // null: all rows
  const int32_t* kv_lengths;
  const int32_t* query_segments;  // null: none; [packs, q_rows]
  const int32_t* kv_segments;     // [packs, k_rows]
  const int2*
      query_segment_range;  // least and greatest id of each kSegmentBlock rows; dense calls only
  const int2* kv_segment_range;
  const int32_t* cu_seqlens_q;  // null: dense; [packs, sequences + 1]
  const int32_t* cu_seqlens_k;
  PageTable
      pages;  // where it is given, keys and values are in pages and set their number; packs = 1
  const uint4* dropout_seed;  // null: no dropout; [NB, Hq]: seed, head, batch

  int packs, sequences, q_rows, k_rows;  // dense: sequences = 1
  int max_q, max_k;                      // longest sequence: sizes the grid, not trusted
  int heads, kv_heads, group, dim, dim_v;
  int causal, top_left, window_left, window_right, sink_tokens;  // windows: -1 for none
  float scale, soft_cap;                                         // soft_cap: 0 for none
  uint32_t dropout_threshold;  // 15 random bits below it drop a weight
  float dropout_scale;         // of the others: 1 / (1 - rate)
  int vector_q, vector_v;      // rows of D (Dv) elements are whole 16-byte pieces
};

inline constexpr int kSegmentBlock = 64;
inline constexpr int kDropoutBits = 15;  // of a random number: dropout.py has the same number
inline constexpr uint32_t kDropoutMix = 0x2C9277B5u;  // see dropout_factor(); likewise

// Whether a call needs the kernels that can do everything: scores that go through more than a positive scale and
// a mask, or rows that cannot be read 16 bytes at a time.
inline bool has_features(const AttentionProblem& p) {
  return !p.vector_q || !p.vector_v || p.bias.type != BiasType::kNone || p.alibi_slopes ||
         p.soft_cap > 0.0f || p.dropout_seed || !(p.scale > 0.0f);
}

// What scores go through besides a positive scale and a mask, and what weights do.
enum Feature {
  kSoftCap = 1,
  kAlibi = 2,
  kBias = 4,
  kDropout = 8,
  kRowBias = 16,      // of kernels: a bias that all rows share
  kFloatBias = 32,    // of kernels: a bias of float32
  kBoundedCap = 64,   // of kernels: a soft cap that leaves weights within the range of their type
  kAllFeatures = 31,  // and scales that are not positive
};

inline int features_of(const AttentionProblem& p) {
  if (!has_features(p)) return 0;
  if (!(p.scale > 0.0f)) return kAllFeatures;
  return (p.soft_cap > 0.0f ? kSoftCap : 0) | (p.alibi_slopes ? kAlibi : 0) |
         (p.bias.type != BiasType::kNone ? kBias : 0) | (p.dropout_seed ? kDropout : 0);
}

struct ForwardParams : AttentionProblem {
  void* out;
  float* lse;  // [packs, Hq, q_rows], paged [q_rows, Hq]
  int64_t lse_head_stride, lse_row_stride;
};

}  // namespace jax_baracuda
