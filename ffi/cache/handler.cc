// FFI bindings of the appends and of apply_rope: check the buffers, fill RowParams, launch.
#include "cache/handler.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cache/config.h"
#include "cache/launch.h"
#include "common/buffers.h"
#include "common/status.h"

namespace jax_baracuda {
namespace {

namespace ffi = xla::ffi;

constexpr int64_t kMaxCount = (int64_t{1} << 31) - 1;

// A launch, worked out.
struct RowCall {
  RowPlan plan = {};
  RowParams params = {};
  bool countable = true;  // what 32 bits must hold, they do
};

// From one slot, row and head of [slots, heads, rows, dim], or [slots, rows, heads, dim] with nhd, to the next.
struct Strides {
  int64_t slot, row, head;
};

Strides strides(bool nhd, int64_t heads, int64_t rows, int64_t dim) {
  return {heads * rows * dim, nhd ? heads * dim : dim, nhd ? dim : rows * dim};
}

bool fit_int32(std::initializer_list<int64_t> counts) {
  return std::all_of(counts.begin(), counts.end(), [](int64_t n) { return n <= kMaxCount; });
}

bool is_like(const ffi::AnyBuffer& a, const ffi::AnyBuffer& b) {
  const auto x = a.dimensions(), y = b.dimensions();
  return a.element_type() == b.element_type() && std::equal(x.begin(), x.end(), y.begin(), y.end());
}

// Rows that come from `from` and go to `to`, `placed` by the launch's rule or like they come.
void add_rows(RowCall* call, const ffi::AnyBuffer& from, const ffi::AnyBuffer& to,
              const Strides& from_strides, const Strides& to_strides, int64_t heads, int64_t dim,
              int64_t rotary_dim, bool placed) {
  RowSet& set = call->params.sets[call->params.set_count++];
  call->countable &= fit_int32({from_strides.row, from_strides.head});
  set.source = from.untyped_data();
  set.target = to.untyped_data();
  set.source_token = static_cast<uint32_t>(from_strides.row);
  set.source_gap =
      from_strides.slot - int64_t{call->params.request_tokens.divisor} * from_strides.row;
  set.source_head = static_cast<uint32_t>(from_strides.head);
  set.target_slot = to_strides.slot;
  set.target_row = to_strides.row;
  set.target_head = to_strides.head;
  set.heads = static_cast<int>(heads);
  set.dim = static_cast<int>(dim);
  set.rotary_dim = static_cast<int>(rotary_dim);
  set.placed = placed;
}

// The rotation of rows of `dim`, and what depends on it.
ffi::Error read_rotation(const char* op, const ffi::AnyBuffer& inv_freq, int64_t dim,
                         bool interleaved, float attention_factor, RowCall* call) {
  const int64_t pairs = inv_freq.element_count();
  if (!has_shape(inv_freq, ffi::F32, {pairs}) || 2 * pairs > dim)
    return invalid_argument(op, "inv_freq must be float32 [R / 2] with R at most the head dim");
  if (2 * pairs > kMostRotaryColumns)
    return invalid_argument(op, "at most 32768 columns of a row can be rotated");
  call->params.inv_freq = inv_freq.typed_data<float>();
  call->params.attention_factor = attention_factor;
  call->plan.rotated = pairs > 0;
  call->plan.interleaved = interleaved;
  return ffi::Error::Success();
}

ffi::Error finish(const char* op, RowCall* call) {
  if (!call->countable)
    return invalid_argument(
        op, "the new rows of a token, and of a head, must have less than 2^31 elements");
  call->plan.vector = fits_vectors(call->params, call->plan.dtype);
  return ffi::Error::Success();
}

// --- The appends ---

struct AppendCall {
  ffi::AnyBuffer k_store, v_store, key, value, query, inv_freq;
  ffi::AnyBuffer positions, batch_indices, page_indices, page_indptr, layers;
  ffi::Result<ffi::AnyBuffer> k_result, v_result, rotated_query;
  bool paged, nhd, interleaved;
  float attention_factor;

  // Operands, results and attributes, in the order of the members.
  template <class Binding>
  static auto bind(Binding&& binding) {
    using ffi::AnyBuffer;
    return std::forward<Binding>(binding)
        .template Arg<AnyBuffer>()
        .template Arg<AnyBuffer>()
        .template Arg<AnyBuffer>()
        .template Arg<AnyBuffer>()
        .template Arg<AnyBuffer>()
        .template Arg<AnyBuffer>()
        .template Arg<AnyBuffer>()
        .template Arg<AnyBuffer>()
        .template Arg<AnyBuffer>()
        .template Arg<AnyBuffer>()
        .template Arg<AnyBuffer>()
        .template Ret<AnyBuffer>()
        .template Ret<AnyBuffer>()
        .template Ret<AnyBuffer>()
        .template Attr<bool>("paged")
        .template Attr<bool>("nhd")
        .template Attr<bool>("interleaved")
        .template Attr<float>("attention_factor");
  }

  const char* op() const { return paged ? "paged_append" : "kv_cache_append"; }
};

// The layers of stores [L, ...]; without L, there is one. `rows`: how many may each have a layer of its own.
ffi::Error read_layers(AppendCall& c, int64_t rows, RowParams* p) {
  const auto store = c.k_store.dimensions();
  const bool stacked = store.size() == 5;
  const int64_t count = stacked ? store[0] : 1, slots = store[stacked ? 1 : 0];
  const int64_t given = c.layers.element_count();
  if (!has_shape(c.layers, ffi::S32, {given}) ||
      (stacked ? given != 1 && given != rows : given != 0))
    return invalid_argument(c.op(), "layers must be int32 [1] or one a row for stacked stores");
  if (!fit_int32({count * slots}))
    return invalid_argument(c.op(), "the stores must have less than 2^31 pages or caches");
  p->layers = stacked ? c.layers.typed_data<int32_t>() : nullptr;
  p->layer_stride = given == 1 ? 0 : 1;
  p->layer_count = static_cast<int>(count);
  p->layer_slots = static_cast<int>(slots);
  return ffi::Error::Success();
}

// Stores [P, page] and rows [T], by a page table.
ffi::Error read_pages(AppendCall& c, int64_t page_size, RowParams* p) {
  const int64_t tokens = c.key.dimensions()[0], entries = c.page_indices.element_count();
  const int64_t bounds = c.page_indptr.element_count();
  if (!has_shape(c.positions, ffi::S32, {tokens}) ||
      !has_shape(c.batch_indices, ffi::S32, {tokens}) ||
      !has_shape(c.page_indices, ffi::S32, {entries}) ||
      !has_shape(c.page_indptr, ffi::S32, {bounds}) || bounds < 1)
    return invalid_argument(c.op(), "the integers must be int32 [T], [T], [N] and [B + 1]");
  if (page_size < 1 || !fit_int32({page_size, tokens, entries, bounds}))
    return invalid_argument(c.op(), "page_size must be positive and every size below 2^31");
  p->placement = Placement::kPages;
  p->positions = c.positions.typed_data<int32_t>();
  p->tokens = static_cast<int>(tokens);
  p->request_tokens = Divisor(static_cast<uint32_t>(std::max<int64_t>(tokens, 1)));
  p->slot_rows = static_cast<int>(page_size);
  p->page_size = Divisor(static_cast<uint32_t>(page_size));
  p->batch_indices = c.batch_indices.typed_data<int32_t>();
  p->page_indices = c.page_indices.typed_data<int32_t>();
  p->page_indptr = c.page_indptr.typed_data<int32_t>();
  p->table_requests = static_cast<int>(bounds - 1);
  p->entries = static_cast<int>(entries);
  return read_layers(c, tokens, p);
}

// Stores [B, K] and rows [R, T]: row r belongs to cache r % B.
ffi::Error read_cache(AppendCall& c, int64_t capacity, RowParams* p) {
  const auto rows = c.key.dimensions();
  const int64_t requests = rows[0], request_tokens = rows[c.nhd ? 1 : 2];
  if (!has_shape(c.positions, ffi::S32, {requests}))
    return invalid_argument(c.op(), "lengths must be int32 [B]");
  if (!fit_int32({capacity, requests * request_tokens}))
    return invalid_argument(c.op(), "every size must be below 2^31");
  p->placement = Placement::kCache;
  p->positions = c.positions.typed_data<int32_t>();
  p->tokens = static_cast<int>(requests * request_tokens);
  p->request_tokens = Divisor(static_cast<uint32_t>(std::max<int64_t>(request_tokens, 1)));
  p->slot_rows = static_cast<int>(capacity);
  if (ffi::Error error = read_layers(c, requests, p); error.failure()) return error;
  p->cache_requests = Divisor(static_cast<uint32_t>(std::max(p->layer_slots, 1)));
  return ffi::Error::Success();
}

// A store, its result and its new rows, `tokens` of them, fit each other.
bool fits(const AppendCall& c, const ffi::AnyBuffer& store, const ffi::AnyBuffer& result,
          const ffi::AnyBuffer& rows, int64_t heads, int64_t tokens) {
  const auto s = store.dimensions(), k = c.k_store.dimensions(), r = rows.dimensions();
  const size_t rank = c.key.dimensions().size();
  return s.size() == k.size() && std::equal(k.begin(), k.end() - 1, s.begin()) && s.back() >= 1 &&
         r.size() == rank && r.back() == s.back() && r[c.nhd || c.paged ? rank - 2 : 1] == heads &&
         static_cast<int64_t>(rows.element_count()) == tokens * heads * r.back() &&
         is_like(result, store) && store.element_type() == c.k_store.element_type() &&
         rows.element_type() == store.element_type();
}

ffi::Error read_append(AppendCall& c, RowCall* call) {
  const auto store = c.k_store.dimensions();
  const size_t rank = c.paged ? 3 : 4;  // of the rows
  if (ffi::Error error = read_dtype(c.op(), c.k_store, &call->plan.dtype); error.failure())
    return error;
  if (store.size() < 4 || store.size() > 5 || c.key.dimensions().size() != rank)
    return invalid_argument(c.op(), "the stores or the rows have a wrong rank");
  const size_t last = store.size() - 1;
  const int64_t heads = store[c.nhd ? last - 1 : last - 2], dim = store[last];
  const int64_t slot_rows = store[c.nhd ? last - 2 : last - 1];
  RowParams& p = call->params;
  if (ffi::Error error = c.paged ? read_pages(c, slot_rows, &p) : read_cache(c, slot_rows, &p);
      error.failure())
    return error;
  if (!fits(c, c.k_store, *c.k_result, c.key, heads, p.tokens) ||
      !fits(c, c.v_store, *c.v_result, c.value, heads, p.tokens))
    return invalid_argument(c.op(), "key and value must fit their stores");
  if (ffi::Error error =
          read_rotation(c.op(), c.inv_freq, dim, c.interleaved, c.attention_factor, call);
      error.failure())
    return error;

  const int64_t rotary_dim = 2 * c.inv_freq.element_count();
  const bool rows_nhd = c.nhd || c.paged;
  const int64_t request_tokens = p.request_tokens.divisor;
  auto of_rows = [&](int64_t heads, int64_t dim) {
    return strides(rows_nhd, heads, request_tokens, dim);
  };
  add_rows(call, c.key, *c.k_result, of_rows(heads, dim), strides(c.nhd, heads, p.slot_rows, dim),
           heads, dim, rotary_dim, true);
  if (const auto q = c.query.dimensions(); q.size() == rank) {
    const int64_t q_heads = q[rows_nhd ? rank - 2 : 1];
    if (c.query.element_type() != c.k_store.element_type() || q.back() != dim ||
        static_cast<int64_t>(c.query.element_count()) != p.tokens * q_heads * dim ||
        !is_like(*c.rotated_query, c.query))
      return invalid_argument(c.op(), "query must fit key");
    const Strides same = of_rows(q_heads, dim);
    add_rows(call, c.query, *c.rotated_query, same, same, q_heads, dim, rotary_dim, false);
  }
  const int64_t value_dim = c.v_store.dimensions()[last];
  add_rows(call, c.value, *c.v_result, of_rows(heads, value_dim),
           strides(c.nhd, heads, p.slot_rows, value_dim), heads, value_dim, 0, true);
  return finish(c.op(), call);
}

// XLA gives a store and its result one buffer. Where some pass of it has not, the result begins as a copy.
cudaError_t begin_result(const ffi::AnyBuffer& store, const ffi::AnyBuffer& result,
                         cudaStream_t stream) {
  if (store.untyped_data() == result.untyped_data() || store.size_bytes() == 0) return cudaSuccess;
  return cudaMemcpyAsync(result.untyped_data(), store.untyped_data(), store.size_bytes(),
                         cudaMemcpyDeviceToDevice, stream);
}

ffi::Error initialize_append(AppendCall c) {
  RowCall call;
  if (ffi::Error error = read_append(c, &call); error.failure()) return error;
  return to_ffi_error(prepare_rows(call.plan), c.op());
}

ffi::Error execute_append(cudaStream_t stream, AppendCall c) {
  RowCall call;
  if (ffi::Error error = read_append(c, &call); error.failure()) return error;
  cudaError_t error = begin_result(c.k_store, *c.k_result, stream);
  if (error == cudaSuccess) error = begin_result(c.v_store, *c.v_result, stream);
  if (error == cudaSuccess) error = launch_rows(call.plan, call.params, stream);
  return to_ffi_error(error, c.op());
}

// --- apply_rope ---

constexpr char kRope[] = "apply_rope";

struct RopeCall {
  ffi::AnyBuffer x, positions, inv_freq;
  ffi::Result<ffi::AnyBuffer> out;
  bool interleaved;
  float attention_factor;

  template <class Binding>
  static auto bind(Binding&& binding) {
    using ffi::AnyBuffer;
    return std::forward<Binding>(binding)
        .template Arg<AnyBuffer>()  // x
        .template Arg<AnyBuffer>()  // positions
        .template Arg<AnyBuffer>()  // inv_freq
        .template Ret<AnyBuffer>()  // out
        .template Attr<bool>("interleaved")
        .template Attr<float>("attention_factor");
  }
};

ffi::Error read_rope(RopeCall& c, RowCall* call) {
  if (ffi::Error error = read_dtype(kRope, c.x, &call->plan.dtype); error.failure()) return error;
  const auto x = c.x.dimensions(), positions = c.positions.dimensions();
  if (x.size() < 2 || !is_like(*c.out, c.x))
    return invalid_argument(kRope, "x must be [..., H, D] and out like it");
  if (c.positions.element_type() != ffi::S32 ||
      !std::equal(positions.begin(), positions.end(), x.begin(), x.end() - 2))
    return invalid_argument(kRope, "positions must be int32 [...]");
  const int64_t tokens = c.positions.element_count(), heads = x[x.size() - 2], dim = x.back();
  if (!fit_int32({tokens, dim})) return invalid_argument(kRope, "every size must be below 2^31");
  if (ffi::Error error =
          read_rotation(kRope, c.inv_freq, dim, c.interleaved, c.attention_factor, call);
      error.failure())
    return error;
  RowParams& p = call->params;
  p.placement = Placement::kNone;
  p.tokens = static_cast<int>(tokens);
  p.request_tokens = Divisor(static_cast<uint32_t>(std::max<int64_t>(tokens, 1)));
  p.positions = c.positions.typed_data<int32_t>();
  const Strides same = strides(true, heads, tokens, dim);
  add_rows(call, c.x, *c.out, same, same, heads, dim, 2 * c.inv_freq.element_count(), false);
  return finish(kRope, call);
}

ffi::Error initialize_rope(RopeCall c) {
  RowCall call;
  if (ffi::Error error = read_rope(c, &call); error.failure()) return error;
  return to_ffi_error(prepare_rows(call.plan), kRope);
}

ffi::Error execute_rope(cudaStream_t stream, RopeCall c) {
  RowCall call;
  if (ffi::Error error = read_rope(c, &call); error.failure()) return error;
  return to_ffi_error(launch_rows(call.plan, call.params, stream), kRope);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    append_initialize, [](auto... call) { return initialize_append(AppendCall{call...}); },
    AppendCall::bind(ffi::Ffi::Bind<ffi::ExecutionStage::kInitialize>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    append_execute,
    [](cudaStream_t stream, auto... call) { return execute_append(stream, AppendCall{call...}); },
    AppendCall::bind(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>()),
    {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    rope_initialize, [](auto... call) { return initialize_rope(RopeCall{call...}); },
    RopeCall::bind(ffi::Ffi::Bind<ffi::ExecutionStage::kInitialize>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    rope_execute,
    [](cudaStream_t stream, auto... call) { return execute_rope(stream, RopeCall{call...}); },
    RopeCall::bind(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>()),
    {ffi::Traits::kCmdBufferCompatible});

}  // namespace jax_baracuda
