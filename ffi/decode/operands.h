// What the handlers of flash_decode and paged_decode share: options, results, checks, parameters, launch.
#pragma once

#include <cstdint>
#include <utility>

#include "decode/params.h"
#include "xla/ffi/api/ffi.h"

namespace jax_baracuda {

// Operands after those that say where the keys are, results and attributes, in the order of the binding.
struct DecodeOptions {
  xla::ffi::AnyBuffer sinks, alibi_slopes;
  xla::ffi::Result<xla::ffi::AnyBuffer> out, lse, workspace;
  bool nhd;
  float scale;
  int64_t window_left, sink_tokens;
  float logits_soft_cap;
  int64_t num_splits;

  // Appends all of them to a binding.
  template <class Binding>
  static auto bind(Binding&& binding) {
    using xla::ffi::AnyBuffer;
    return std::forward<Binding>(binding)
        .template Arg<AnyBuffer>()  // sinks
        .template Arg<AnyBuffer>()  // alibi_slopes
        .template Ret<AnyBuffer>()  // out
        .template Ret<AnyBuffer>()  // lse
        .template Ret<AnyBuffer>()  // workspace
        .template Attr<bool>("nhd")
        .template Attr<float>("scale")
        .template Attr<int64_t>("window_left")
        .template Attr<int64_t>("sink_tokens")
        .template Attr<float>("logits_soft_cap")
        .template Attr<int64_t>("num_splits");
  }
};

// Where the keys and values are: [batch or pages, ...] as the layout says. `rows`: the extent that is not heads.
struct DecodeStore {
  xla::ffi::AnyBuffer key, value;
  int64_t outer = 0, kv_heads = 0, rows = 0;
};

// Checks query, store, options and results against each other. Fills `store` from its buffers and `shape`, all but the
// lengths.
xla::ffi::Error read_decode_shape(const char* op, const xla::ffi::AnyBuffer& query,
                                  DecodeOptions& options, DecodeStore* store, DecodeShape* shape);

// Nothing to compute.
inline bool is_empty(const DecodeShape& s) { return s.batch == 0 || s.group == 0; }

// Chooses the configuration; for an empty problem none.
xla::ffi::Error plan_decode_call(const char* op, const DecodeShape& shape, DecodeOptions& options,
                                 DecodeConfig* config);

// All parameters but lengths, strides and page table.
DecodeParams decode_params(const xla::ffi::AnyBuffer& query, const DecodeStore& store,
                           DecodeOptions& options, const DecodeShape& shape,
                           const DecodeConfig& config);

}  // namespace jax_baracuda
