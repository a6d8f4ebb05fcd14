// The operands and attributes that the attention handlers share, and how they become an AttentionProblem.
#pragma once

#include <cstdint>
#include <utility>

#include "attention/params.h"
#include "common/buffers.h"
#include "common/page_operands.h"
#include "xla/ffi/api/ffi.h"

namespace jax_baracuda {

// An option that was not given is an array of shape (0,).
struct AttentionOptions {
  xla::ffi::AnyBuffer bias, sinks, alibi_slopes, query_lengths, kv_lengths, query_segment_ids,
      kv_segment_ids, cu_seqlens_q, cu_seqlens_k, dropout_seed;

  template <class Binding>
  static auto bind(Binding&& binding) {
    using xla::ffi::AnyBuffer;
    return std::forward<Binding>(binding)
        .template Arg<AnyBuffer>()   // bias
        .template Arg<AnyBuffer>()   // sinks
        .template Arg<AnyBuffer>()   // alibi_slopes
        .template Arg<AnyBuffer>()   // query_lengths
        .template Arg<AnyBuffer>()   // kv_lengths
        .template Arg<AnyBuffer>()   // query_segment_ids
        .template Arg<AnyBuffer>()   // kv_segment_ids
        .template Arg<AnyBuffer>()   // cu_seqlens_q
        .template Arg<AnyBuffer>()   // cu_seqlens_k
        .template Arg<AnyBuffer>();  // dropout_seed
  }
};

struct AttentionAttributes {
  float scale;
  bool causal, top_left;
  int64_t window_left, window_right, sink_tokens;
  float logits_soft_cap, dropout_rate;
  int64_t max_seqlen_q, max_seqlen_k;

  template <class Binding>
  static auto bind(Binding&& binding) {
    return std::forward<Binding>(binding)
        .template Attr<float>("scale")
        .template Attr<bool>("causal")
        .template Attr<bool>("top_left")
        .template Attr<int64_t>("window_left")
        .template Attr<int64_t>("window_right")
        .template Attr<int64_t>("sink_tokens")
        .template Attr<float>("logits_soft_cap")
        .template Attr<float>("dropout_rate")
        .template Attr<int64_t>("max_seqlen_q")
        .template Attr<int64_t>("max_seqlen_k");
  }
};

// Checks query, key, value and the options against each other and fills `problem`, all but the segment ranges.
xla::ffi::Error read_problem(const char* op, const xla::ffi::AnyBuffer& query,
                             const xla::ffi::AnyBuffer& key, const xla::ffi::AnyBuffer& value,
                             const AttentionOptions& options, const AttentionAttributes& attributes,
                             DType* dtype, AttentionProblem* problem);

struct PagedAttributes {
  bool nhd;
  float scale;
  bool causal;
  int64_t window_left, window_right, sink_tokens;
  float logits_soft_cap;
  int64_t max_seqlen_q;

  template <class Binding>
  static auto bind(Binding&& binding) {
    return std::forward<Binding>(binding)
        .template Attr<bool>("nhd")
        .template Attr<float>("scale")
        .template Attr<bool>("causal")
        .template Attr<int64_t>("window_left")
        .template Attr<int64_t>("window_right")
        .template Attr<int64_t>("sink_tokens")
        .template Attr<float>("logits_soft_cap")
        .template Attr<int64_t>("max_seqlen_q");
  }
};

// The same for packed queries over keys in pages.
xla::ffi::Error read_paged_problem(const char* op, const xla::ffi::AnyBuffer& query,
                                   const xla::ffi::AnyBuffer& qo_indptr,
                                   const xla::ffi::AnyBuffer& k_pages,
                                   const xla::ffi::AnyBuffer& v_pages, const PageOperands& pages,
                                   const xla::ffi::AnyBuffer& sinks,
                                   const xla::ffi::AnyBuffer& alibi_slopes,
                                   const PagedAttributes& attributes, DType* dtype,
                                   AttentionProblem* problem);

}  // namespace jax_baracuda
