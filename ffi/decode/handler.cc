// FFI binding of flash_decode: checks the buffers, fills DecodeParams, launches.
#include "decode/handler.h"

#include <algorithm>
#include <initializer_list>
#include <string>
#include <utility>

#include "common/status.h"
#include "decode/config.h"
#include "decode/launch.h"

namespace jax_baracuda {
namespace {

namespace ffi = xla::ffi;

constexpr float kLog2E = 1.4426950408889634f;

// Operands, results and attributes, in the order of the binding.
struct DecodeCall {
  ffi::AnyBuffer query, key, value, kv_lengths, sinks, alibi_slopes;
  ffi::Result<ffi::AnyBuffer> out, lse, workspace;
  bool nhd;
  float scale;
  int64_t window_left, sink_tokens;
  float logits_soft_cap;
  int64_t num_splits;

  // Appends all of them to a binding.
  template <class Binding>
  static auto bind(Binding&& binding) {
    return std::forward<Binding>(binding)
        .template Arg<ffi::AnyBuffer>()  // query
        .template Arg<ffi::AnyBuffer>()  // key
        .template Arg<ffi::AnyBuffer>()  // value
        .template Arg<ffi::AnyBuffer>()  // kv_lengths
        .template Arg<ffi::AnyBuffer>()  // sinks
        .template Arg<ffi::AnyBuffer>()  // alibi_slopes
        .template Ret<ffi::AnyBuffer>()  // out
        .template Ret<ffi::AnyBuffer>()  // lse
        .template Ret<ffi::AnyBuffer>()  // workspace
        .template Attr<bool>("nhd")
        .template Attr<float>("scale")
        .template Attr<int64_t>("window_left")
        .template Attr<int64_t>("sink_tokens")
        .template Attr<float>("logits_soft_cap")
        .template Attr<int64_t>("num_splits");
  }
};

ffi::Error invalid(const std::string& what) {
  return ffi::Error::InvalidArgument("flash_decode: " + what);
}

bool has_shape(const ffi::AnyBuffer& buffer, std::initializer_list<int64_t> shape) {
  auto dims = buffer.dimensions();
  return dims.size() == shape.size() && std::equal(dims.begin(), dims.end(), shape.begin());
}

// A per-head float32 operand: absent, [1, heads] or [batch, heads].
bool is_head_operand(const ffi::AnyBuffer& buffer, int64_t batch, int64_t heads) {
  if (buffer.element_count() == 0) return true;
  return buffer.element_type() == ffi::F32 &&
         (has_shape(buffer, {1, heads}) || has_shape(buffer, {batch, heads}));
}

ffi::Error read_shape(DecodeCall& c, DecodeShape* shape) {
  switch (c.query.element_type()) {
    case ffi::F16:
      shape->dtype = DType::kF16;
      break;
    case ffi::BF16:
      shape->dtype = DType::kBF16;
      break;
    case ffi::F32:
      shape->dtype = DType::kF32;
      break;
    default:
      return invalid("query must be float16, bfloat16 or float32");
  }
  const auto type = c.query.element_type();
  if (c.key.element_type() != type || c.value.element_type() != type ||
      c.out->element_type() != type)
    return invalid("query, key, value and out must have one dtype");
  if (c.query.dimensions().size() != 3 || c.key.dimensions().size() != 4)
    return invalid("query must have 3 dimensions, key and value 4");
  const auto q = c.query.dimensions();
  const auto k = c.key.dimensions();
  const int64_t batch = q[0], heads = q[1], head_dim = q[2];
  const int64_t kv_heads = c.nhd ? k[2] : k[1];
  const int64_t capacity = c.nhd ? k[1] : k[2];
  if (k[0] != batch || k[3] != head_dim || kv_heads < 1 || heads % kv_heads != 0)
    return invalid("key does not fit query");
  if (!has_shape(c.value, {k[0], k[1], k[2], k[3]})) return invalid("value does not fit key");
  if (!has_shape(*c.out, {batch, heads, head_dim}) || !has_shape(*c.lse, {batch, heads}) ||
      c.lse->element_type() != ffi::F32)
    return invalid("out must be like query and lse float32 [B, Hq]");
  if (head_dim < 1 || head_dim > 256) return invalid("head_dim must be in 1..256");
  if (c.kv_lengths.element_count() != 0 &&
      (c.kv_lengths.element_type() != ffi::S32 || !has_shape(c.kv_lengths, {batch})))
    return invalid("kv_lengths must be int32 [B]");
  if (!is_head_operand(c.sinks, batch, heads) || !is_head_operand(c.alibi_slopes, batch, heads))
    return invalid("sinks and alibi_slopes must be float32 [1, Hq] or [B, Hq]");
  constexpr int64_t kMaxRows = int64_t{1} << 30;
  if (capacity >= kMaxRows || batch * heads >= kMaxRows) return invalid("cache too large");
  if (c.num_splits < 0 || c.num_splits > kMaxSplits)
    return invalid("num_splits must be in 0.." + std::to_string(kMaxSplits));

  shape->batch = static_cast<int>(batch);
  shape->kv_heads = static_cast<int>(kv_heads);
  shape->group = static_cast<int>(heads / kv_heads);
  shape->head_dim = static_cast<int>(head_dim);
  shape->kv_capacity = static_cast<int>(capacity);
  shape->num_splits = static_cast<int>(c.num_splits);
  shape->uneven_lengths = batch > 1 && c.kv_lengths.element_count() != 0;
  return ffi::Error::Success();
}

const float* optional_floats(const ffi::AnyBuffer& buffer) {
  return buffer.element_count() == 0 ? nullptr : buffer.typed_data<float>();
}

int64_t head_operand_stride(const ffi::AnyBuffer& buffer) {
  const auto dims = buffer.dimensions();
  return dims.size() == 2 && dims[0] > 1 ? dims[1] : 0;
}

DecodeParams make_params(DecodeCall& c, const DecodeShape& s, const DecodeConfig& config) {
  constexpr int64_t kNoLimit = int64_t{1} << 30;
  DecodeParams p = {};
  p.query = c.query.untyped_data();
  p.key = c.key.untyped_data();
  p.value = c.value.untyped_data();
  p.kv_lengths = c.kv_lengths.element_count() == 0 ? nullptr : c.kv_lengths.typed_data<int32_t>();
  p.sinks = optional_floats(c.sinks);
  p.alibi_slopes = optional_floats(c.alibi_slopes);
  p.out = c.out->untyped_data();
  p.lse = c.lse->typed_data<float>();
  // The sums first: their rows of a multiple of four elements are then aligned to 16 bytes.
  p.slot_heads = partial_heads(s, config);
  p.partial_out = static_cast<float*>(c.workspace->untyped_data());
  p.partial_stats = p.partial_out + config.partial_slots * p.slot_heads * s.head_dim;
  p.kv_batch_stride = int64_t{s.kv_heads} * s.kv_capacity * s.head_dim;
  p.kv_head_stride = c.nhd ? s.head_dim : int64_t{s.kv_capacity} * s.head_dim;
  p.kv_token_stride = c.nhd ? int64_t{s.kv_heads} * s.head_dim : s.head_dim;
  p.sinks_batch_stride = head_operand_stride(c.sinks);
  p.alibi_batch_stride = head_operand_stride(c.alibi_slopes);
  p.batch = s.batch;
  p.kv_heads = s.kv_heads;
  p.group = s.group;
  p.head_dim = s.head_dim;
  p.kv_capacity = s.kv_capacity;
  p.window_left = c.window_left < 0 ? -1 : static_cast<int>(std::min(c.window_left, kNoLimit));
  p.sink_tokens = static_cast<int>(std::min(c.sink_tokens, kNoLimit));
  p.capped = c.logits_soft_cap > 0.0f;
  p.outer_scale = (p.capped ? c.logits_soft_cap : c.scale) * kLog2E;
  p.inner_scale = p.capped ? c.scale / c.logits_soft_cap : 0.0f;
  p.slices = config.slices;
  p.token_warps = config.token_warps;
  p.chunk_tokens = Divisor(static_cast<uint32_t>(config.chunk_tokens));
  p.block_heads = config.block_heads;
  p.head_blocks = config.head_blocks;
  p.splits = config.splits;
  p.cluster = config.cluster;
  p.ctas = static_cast<int>(config.ctas);
  p.merge_buffers = config.merge_buffers;
  p.merge_stride = config.merge_buffers == 1
                       ? 0
                       : merge_floats(config.block_heads, config.token_warps, config.dim_tile);
  if (config.splits == 0) {
    const int row_chunks = full_row_chunks(s, config);
    const int64_t total = int64_t{s.batch} * s.kv_heads * config.head_blocks * row_chunks;
    p.full_row_chunks = Divisor(static_cast<uint32_t>(row_chunks));
    p.full_request_rows = Divisor(static_cast<uint32_t>(s.kv_heads * config.head_blocks));
    p.full_piece = static_cast<int>(total / config.ctas);
    p.full_longer_pieces = static_cast<int>(total % config.ctas);
  }
  return p;
}

bool is_empty(const DecodeShape& s) { return s.batch == 0 || s.group == 0; }

ffi::Error plan(DecodeCall& c, DecodeShape* shape, DecodeConfig* config) {
  if (ffi::Error error = read_shape(c, shape); error.failure()) return error;
  if (is_empty(*shape)) return ffi::Error::Success();
  const int64_t workspace = static_cast<int64_t>(c.workspace->size_bytes());
  if (cudaError_t error = plan_decode(*shape, workspace, config); error != cudaSuccess)
    return to_ffi_error(error, "flash_decode");
  if (workspace_bytes(*shape, *config) > workspace) return invalid("the workspace is too small");
  return ffi::Error::Success();
}

ffi::Error initialize_decode(DecodeCall c) {
  DecodeShape shape;
  DecodeConfig config;
  return plan(c, &shape, &config);
}

ffi::Error execute_decode(cudaStream_t stream, DecodeCall c) {
  DecodeShape shape;
  DecodeConfig config;
  if (ffi::Error error = plan(c, &shape, &config); error.failure()) return error;
  if (is_empty(shape)) return ffi::Error::Success();
  return to_ffi_error(launch_decode(shape, config, make_params(c, shape, config), stream),
                      "flash_decode");
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
