#include "decode/operands.h"

#include <algorithm>
#include <string>

#include "common/buffers.h"
#include "common/status.h"
#include "decode/config.h"
#include "decode/launch.h"

namespace jax_baracuda {
namespace {

namespace ffi = xla::ffi;

constexpr float kLog2E = 1.4426950408889634f;
constexpr int64_t kNoLimit = int64_t{1} << 30;

// A per-head float32 operand: absent, [1, heads] or [batch, heads].
bool is_head_operand(const ffi::AnyBuffer& buffer, int64_t batch, int64_t heads) {
  return buffer.element_count() == 0 || has_shape(buffer, ffi::F32, {1, heads}) ||
         has_shape(buffer, ffi::F32, {batch, heads});
}

const float* optional_floats(const ffi::AnyBuffer& buffer) {
  return buffer.element_count() == 0 ? nullptr : buffer.typed_data<float>();
}

int64_t head_operand_stride(const ffi::AnyBuffer& buffer) {
  const auto dims = buffer.dimensions();
  return dims.size() == 2 && dims[0] > 1 ? dims[1] : 0;
}

}  // namespace

ffi::Error read_decode_shape(const char* op, const ffi::AnyBuffer& query, DecodeOptions& options,
                             DecodeStore* store, DecodeShape* shape) {
  const auto type = query.element_type();
  if (ffi::Error error = read_dtype(op, query, &shape->dtype); error.failure()) return error;
  if (query.dimensions().size() != 3 || store->key.dimensions().size() != 4)
    return invalid_argument(op, "query must have 3 dimensions, keys and values 4");
  const auto q = query.dimensions();
  const auto k = store->key.dimensions();
  const int64_t batch = q[0], heads = q[1], head_dim = q[2];
  store->outer = k[0];
  store->kv_heads = options.nhd ? k[2] : k[1];
  store->rows = options.nhd ? k[1] : k[2];
  if (k[3] != head_dim || store->kv_heads < 1 || heads % store->kv_heads != 0)
    return invalid_argument(op, "the keys do not fit query");
  if (store->key.element_type() != type || !has_shape(store->value, type, {k[0], k[1], k[2], k[3]}))
    return invalid_argument(op, "the keys and values must fit each other and have query's dtype");
  if (!has_shape(*options.out, type, {batch, heads, head_dim}) ||
      !has_shape(*options.lse, ffi::F32, {batch, heads}))
    return invalid_argument(op, "out must be like query and lse float32 [B, Hq]");
  if (head_dim < 1 || head_dim > 256) return invalid_argument(op, "head_dim must be in 1..256");
  if (!is_head_operand(options.sinks, batch, heads) ||
      !is_head_operand(options.alibi_slopes, batch, heads))
    return invalid_argument(op, "sinks and alibi_slopes must be float32 [1, Hq] or [B, Hq]");
  if (batch * heads >= kNoLimit) return invalid_argument(op, "too many query heads");
  if (options.num_splits < 0 || options.num_splits > kMaxSplits)
    return invalid_argument(op, "num_splits must be in 0.." + std::to_string(kMaxSplits));

  shape->batch = static_cast<int>(batch);
  shape->kv_heads = static_cast<int>(store->kv_heads);
  shape->group = static_cast<int>(heads / store->kv_heads);
  shape->head_dim = static_cast<int>(head_dim);
  shape->num_splits = static_cast<int>(options.num_splits);
  return ffi::Error::Success();
}

ffi::Error plan_decode_call(const char* op, const DecodeShape& shape, DecodeOptions& options,
                            DecodeConfig* config) {
  if (is_empty(shape)) return ffi::Error::Success();
  const auto workspace = static_cast<int64_t>(options.workspace->size_bytes());
  if (cudaError_t error = plan_decode(shape, workspace, config); error != cudaSuccess)
    return to_ffi_error(error, op);
  if (workspace_bytes(shape, *config) > workspace)
    return invalid_argument(op, "the workspace is too small");
  return ffi::Error::Success();
}

DecodeParams decode_params(const ffi::AnyBuffer& query, const DecodeStore& store,
                           DecodeOptions& options, const DecodeShape& s,
                           const DecodeConfig& config) {
  DecodeParams p = {};
  p.query = query.untyped_data();
  p.key = store.key.untyped_data();
  p.value = store.value.untyped_data();
  p.sinks = optional_floats(options.sinks);
  p.alibi_slopes = optional_floats(options.alibi_slopes);
  p.out = options.out->untyped_data();
  p.lse = options.lse->typed_data<float>();
  // The sums first: their rows of a multiple of four elements are then aligned to 16 bytes.
  p.slot_heads = partial_heads(s, config);
  p.partial_out = static_cast<float*>(options.workspace->untyped_data());
  p.partial_stats = p.partial_out + config.partial_slots * p.slot_heads * s.head_dim;
  p.sinks_batch_stride = head_operand_stride(options.sinks);
  p.alibi_batch_stride = head_operand_stride(options.alibi_slopes);
  p.batch = s.batch;
  p.kv_heads = s.kv_heads;
  p.group = s.group;
  p.head_dim = s.head_dim;
  p.kv_capacity = s.kv_capacity;
  p.window_left =
      options.window_left < 0 ? -1 : static_cast<int>(std::min(options.window_left, kNoLimit));
  p.sink_tokens = static_cast<int>(std::min(options.sink_tokens, kNoLimit));
  p.capped = options.logits_soft_cap > 0.0f;
  p.outer_scale = (p.capped ? options.logits_soft_cap : options.scale) * kLog2E;
  p.inner_scale = p.capped ? options.scale / options.logits_soft_cap : 0.0f;
  p.slices = config.slices;
  p.token_warps = config.token_warps;
  p.chunk_tokens = Divisor(static_cast<uint32_t>(config.chunk_tokens));
  p.block_heads = config.block_heads;
  p.head_blocks = config.head_blocks;
  p.splits = config.splits;
  p.cluster = config.cluster;
  p.ring_stages = config.ring_stages;
  p.ring_offset = config.ring_offset;
  p.table_offset = config.table_offset;
  if (config.cluster) {
    p.cluster_quads = cluster_quads(config.block_heads, config.dim_tile, config.splits);
    while (1 << p.cluster_bits < config.splits) ++p.cluster_bits;
  }
  p.ctas = static_cast<int>(config.ctas);
  p.even_ctas = static_cast<int>(config.even_ctas);
  p.lanes = Divisor(static_cast<uint32_t>(config.lanes));
  p.merge_buffers = config.merge_buffers;
  p.merge_stride = config.merge_buffers == 1
                       ? 0
                       : merge_floats(config.block_heads, config.token_warps, config.dim_tile);
  return p;
}

}  // namespace jax_baracuda
