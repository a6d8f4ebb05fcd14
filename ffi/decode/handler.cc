// FFI binding of flash_decode: checks the buffers, fills DecodeParams, launches.
#include "decode/handler.h"

#include <utility>

#include "common/buffers.h"
#include "common/status.h"
#include "decode/config.h"
#include "decode/launch.h"
#include "decode/operands.h"

namespace jax_baracuda {
namespace {

namespace ffi = xla::ffi;

constexpr char kOp[] = "flash_decode";

// Operands, results and attributes, in the order of the binding.
struct DecodeCall {
  ffi::AnyBuffer query, key, value, kv_lengths;
  DecodeOptions options;

  template <class Binding>
  static auto bind(Binding&& binding) {
    return DecodeOptions::bind(std::forward<Binding>(binding)
                                   .template Arg<ffi::AnyBuffer>()    // query
                                   .template Arg<ffi::AnyBuffer>()    // key
                                   .template Arg<ffi::AnyBuffer>()    // value
                                   .template Arg<ffi::AnyBuffer>());  // kv_lengths
  }
};

struct DecodePlan {
  DecodeStore store;
  DecodeShape shape;
  DecodeConfig config;
};

ffi::Error make_plan(DecodeCall& c, DecodePlan* plan) {
  DecodeShape& shape = plan->shape;
  if (ffi::Error error = read_decode_shape(kOp, c.query, c.options, &plan->store, &shape);
      error.failure())
    return error;
  if (plan->store.outer != shape.batch) return invalid_argument(kOp, "key does not fit query");
  if (plan->store.rows >= int64_t{1} << 30) return invalid_argument(kOp, "cache too large");
  const bool lengths = c.kv_lengths.element_count() != 0;
  if (lengths && !has_shape(c.kv_lengths, ffi::S32, {shape.batch}))
    return invalid_argument(kOp, "kv_lengths must be int32 [B]");
  shape.kv_capacity = static_cast<int>(plan->store.rows);
  shape.uneven_lengths = shape.batch > 1 && lengths;
  shape.adjacent_rows = !c.options.nhd;
  return plan_decode_call(kOp, shape, c.options, &plan->config);
}

// The line of chunks where every request fills its cache: no CTA has to work it out.
void set_full_line(const DecodeShape& s, const DecodeConfig& config, DecodeParams* p) {
  const int row_chunks = full_row_chunks(s, config);
  const int rows = s.kv_heads * config.head_blocks / config.lanes;
  const int64_t total = int64_t{s.batch} * rows * row_chunks, pieces = config.ctas / config.lanes;
  p->full_row_chunks = Divisor(static_cast<uint32_t>(row_chunks));
  p->full_request_rows = Divisor(static_cast<uint32_t>(rows));
  p->full_piece = static_cast<int>(total / pieces);
  p->full_longer_pieces = static_cast<int>(total % pieces);
}

DecodeParams make_params(DecodeCall& c, const DecodePlan& plan) {
  const DecodeShape& s = plan.shape;
  DecodeParams p = decode_params(c.query, plan.store, c.options, s, plan.config);
  p.kv_lengths = c.kv_lengths.element_count() == 0 ? nullptr : c.kv_lengths.typed_data<int32_t>();
  const bool nhd = c.options.nhd;
  p.kv_batch_stride = int64_t{s.kv_heads} * s.kv_capacity * s.head_dim;
  p.kv_head_stride = nhd ? s.head_dim : int64_t{s.kv_capacity} * s.head_dim;
  p.kv_token_stride = nhd ? int64_t{s.kv_heads} * s.head_dim : s.head_dim;
  if (plan.config.splits == 0) set_full_line(s, plan.config, &p);
  return p;
}

ffi::Error initialize_decode(DecodeCall c) {
  DecodePlan plan = {{c.key, c.value}, {}, {}};
  return make_plan(c, &plan);
}

ffi::Error execute_decode(cudaStream_t stream, DecodeCall c) {
  DecodePlan plan = {{c.key, c.value}, {}, {}};
  if (ffi::Error error = make_plan(c, &plan); error.failure()) return error;
  if (is_empty(plan.shape)) return ffi::Error::Success();
  return to_ffi_error(launch_decode(plan.shape, plan.config, make_params(c, plan), stream), kOp);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    flash_decode_initialize, [](auto... call) { return initialize_decode(DecodeCall{call...}); },
    DecodeCall::bind(ffi::Ffi::Bind<ffi::ExecutionStage::kInitialize>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    flash_decode_execute,
    [](cudaStream_t stream, auto... call) { return execute_decode(stream, DecodeCall{call...}); },
    DecodeCall::bind(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>()),
    {ffi::Traits::kCmdBufferCompatible});

}  // namespace jax_baracuda
