// FFI binding of paged_decode: checks the buffers, fills DecodeParams, launches.
#include <algorithm>
#include <limits>
#include <utility>

#include "common/page_operands.h"
#include "common/status.h"
#include "decode/config.h"
#include "decode/handler.h"
#include "decode/launch.h"
#include "decode/operands.h"

namespace jax_baracuda {
namespace {

namespace ffi = xla::ffi;

constexpr char kOp[] = "paged_decode";

// Operands, results and attributes, in the order of the binding.
struct PagedDecodeCall {
  ffi::AnyBuffer query, k_pages, v_pages;
  PageOperands pages;
  DecodeOptions options;

  template <class Binding>
  static auto bind(Binding&& binding) {
    return DecodeOptions::bind(PageOperands::bind(std::forward<Binding>(binding)
                                                      .template Arg<ffi::AnyBuffer>()     // query
                                                      .template Arg<ffi::AnyBuffer>()     // k_pages
                                                      .template Arg<ffi::AnyBuffer>()));  // v_pages
  }
};

struct PagedDecodePlan {
  DecodeStore store;
  DecodeShape shape;
  DecodeConfig config;
  PageTable pages;
};

// The longest request for which the chunks of all rows can be counted in 31 bits, even if all were so long.
int64_t countable_length(const DecodeShape& s) {
  const DecodeConfig layout = choose_layout(s);
  const int64_t rows = int64_t{s.batch} * s.kv_heads * layout.head_blocks;
  return std::numeric_limits<int32_t>::max() / rows / 2 * layout.chunk_tokens;
}

ffi::Error make_plan(PagedDecodeCall& c, PagedDecodePlan* plan) {
  DecodeShape& shape = plan->shape;
  const DecodeStore& store = plan->store;
  if (ffi::Error error = read_decode_shape(kOp, c.query, c.options, &plan->store, &shape);
      error.failure())
    return error;
  shape.paged = true;
  shape.uneven_lengths = shape.batch > 1;
  const int64_t longest = is_empty(shape) ? 0 : countable_length(shape);
  if (ffi::Error error = read_page_table(kOp, c.pages, shape.batch, store.outer, store.rows,
                                         store.kv_heads, c.options.nhd, longest, &plan->pages);
      error.failure())
    return error;
  shape.kv_capacity = plan->pages.max_length;
  shape.table_entries = plan->pages.entries;
  // Chunks begin at multiples of four tokens, but for the first one of a window.
  shape.adjacent_rows = !c.options.nhd && store.rows % 4 == 0 && c.options.window_left < 0;
  return plan_decode_call(kOp, shape, c.options, &plan->config);
}

ffi::Error initialize(PagedDecodeCall c) {
  PagedDecodePlan plan = {{c.k_pages, c.v_pages}, {}, {}, {}};
  return make_plan(c, &plan);
}

ffi::Error execute(cudaStream_t stream, PagedDecodeCall c) {
  PagedDecodePlan plan = {{c.k_pages, c.v_pages}, {}, {}, {}};
  if (ffi::Error error = make_plan(c, &plan); error.failure()) return error;
  if (is_empty(plan.shape)) return ffi::Error::Success();
  DecodeParams params = decode_params(c.query, plan.store, c.options, plan.shape, plan.config);
  params.pages = plan.pages;
  params.kv_lengths = plan.pages.last_page_len;  // there are lengths to be read
  return to_ffi_error(launch_decode(plan.shape, plan.config, params, stream), kOp);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    paged_decode_initialize, [](auto... call) { return initialize(PagedDecodeCall{call...}); },
    PagedDecodeCall::bind(ffi::Ffi::Bind<ffi::ExecutionStage::kInitialize>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    paged_decode_execute,
    [](cudaStream_t stream, auto... call) { return execute(stream, PagedDecodeCall{call...}); },
    PagedDecodeCall::bind(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>()),
    {ffi::Traits::kCmdBufferCompatible});

}  // namespace jax_baracuda
