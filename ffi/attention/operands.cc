#include "attention/operands.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

namespace jax_baracuda {
namespace {

namespace ffi = xla::ffi;

constexpr int64_t kMaxRows = int64_t{1} << 30;
constexpr int kMaxDim = 256;

bool given(const ffi::AnyBuffer& buffer) {
  return buffer.dimensions().size() > 1 || buffer.element_count() > 0;
}

// [1|first, ...] with every other dimension 1 or as given.
bool broadcasts_to(const ffi::AnyBuffer& buffer, std::initializer_list<int64_t> shape) {
  const auto dims = buffer.dimensions();
  return dims.size() == shape.size() &&
         std::equal(dims.begin(), dims.end(), shape.begin(),
                    [](int64_t dim, int64_t full) { return dim == 1 || dim == full; });
}

bool read_bias(const ffi::AnyBuffer& buffer, int64_t sequences, int64_t heads, int64_t rows,
               int64_t keys, AttentionBias* bias) {
  if (!given(buffer)) return true;
  switch (buffer.element_type()) {
    case ffi::F16:
      bias->type = BiasType::kF16;
      break;
    case ffi::BF16:
      bias->type = BiasType::kBF16;
      break;
    case ffi::F32:
      bias->type = BiasType::kF32;
      break;
    case ffi::PRED:
      bias->type = BiasType::kMask;
      break;
    default:
      return false;
  }
  if (!broadcasts_to(buffer, {sequences, heads, rows, keys})) return false;
  const auto dims = buffer.dimensions();
  if (dims[3] != keys) return false;
  bias->data = buffer.untyped_data();
  bias->row_stride = dims[2] == 1 ? 0 : dims[3];
  bias->head_stride = dims[1] == 1 ? 0 : dims[2] * dims[3];
  bias->rows = static_cast<int>(std::min(rows, kMaxRows));
  bias->keys = static_cast<int>(keys);
  bias->sequence_stride = dims[0] == 1 ? 0 : dims[1] * dims[2] * dims[3];
  return true;
}

// float32 [1|sequences, heads]
bool read_per_head(const ffi::AnyBuffer& buffer, int64_t sequences, int64_t heads,
                   const float** data, int64_t* stride) {
  if (!given(buffer)) return true;
  if (buffer.element_type() != ffi::F32 || !broadcasts_to(buffer, {sequences, heads}) ||
      buffer.dimensions()[1] != heads)
    return false;
  *data = buffer.typed_data<float>();
  *stride = buffer.dimensions()[0] == 1 ? 0 : heads;
  return true;
}

bool read_integers(const ffi::AnyBuffer& buffer, std::initializer_list<int64_t> shape,
                   const int32_t** data) {
  if (!given(buffer)) return true;
  if (!has_shape(buffer, ffi::S32, shape)) return false;
  *data = buffer.typed_data<int32_t>();
  return true;
}

int window(int64_t size) { return size < 0 ? -1 : static_cast<int>(std::min(size, kMaxRows)); }

bool whole_pieces(const ffi::AnyBuffer& a, const ffi::AnyBuffer& b, int64_t dim, int element) {
  const auto address =
      reinterpret_cast<uintptr_t>(a.untyped_data()) | reinterpret_cast<uintptr_t>(b.untyped_data());
  return dim * element % 16 == 0 && address % 16 == 0;
}

// The attributes that both kinds of attributes have.
template <class Attributes>
void set_mask(const Attributes& attributes, AttentionProblem* p) {
  p->causal = attributes.causal;
  p->window_left = window(attributes.window_left);
  p->window_right = window(attributes.window_right);
  p->sink_tokens = static_cast<int>(std::clamp<int64_t>(attributes.sink_tokens, 0, kMaxRows));
  p->scale = attributes.scale;
  p->soft_cap = attributes.logits_soft_cap;
}

// What is dropped counts the nearest multiple of 2^-15 below 1, the scale the rate itself.
void set_dropout_rate(double rate, AttentionProblem* p) {
  constexpr double kSteps = 1 << kDropoutBits;
  const double threshold = std::clamp(std::floor(rate * kSteps + 0.5), 0.0, kSteps - 1.0);
  p->dropout_threshold = static_cast<uint32_t>(threshold);
  p->dropout_scale = rate < 1.0 ? static_cast<float>(1.0 / (1.0 - rate)) : 0.0f;
}

// The operands themselves and how they can be read. Needs the head dims.
void set_data(const ffi::AnyBuffer& query, const ffi::AnyBuffer& key, const ffi::AnyBuffer& value,
              DType dtype, AttentionProblem* p) {
  const int element = dtype == DType::kF32 ? 4 : 2;
  p->query = query.untyped_data();
  p->key = key.untyped_data();
  p->value = value.untyped_data();
  p->vector_q = whole_pieces(query, key, p->dim, element);
  p->vector_v = whole_pieces(value, value, p->dim_v, element);
  p->dropout_scale = 1.0f;
}

}  // namespace

ffi::Error read_problem(const char* op, const ffi::AnyBuffer& query, const ffi::AnyBuffer& key,
                        const ffi::AnyBuffer& value, const AttentionOptions& options,
                        const AttentionAttributes& attributes, DType* dtype,
                        AttentionProblem* problem) {
  const auto type = query.element_type();
  if (ffi::Error error = read_dtype(op, query, dtype); error.failure()) return error;
  const auto q = query.dimensions(), k = key.dimensions(), v = value.dimensions();
  if (q.size() != 4 || k.size() != 4 || v.size() != 4)
    return invalid_argument(op, "query, key and value must have 4 dimensions");
  const int64_t packs = q[0], q_rows = q[1], heads = q[2], dim = q[3];
  const int64_t k_rows = k[1], kv_heads = k[2], dim_v = v[3];
  if (!has_shape(key, type, {packs, k_rows, kv_heads, dim}) ||
      !has_shape(value, type, {packs, k_rows, kv_heads, dim_v}))
    return invalid_argument(op, "key and value must fit query and have its dtype");
  if (kv_heads < 1 || heads % kv_heads != 0)
    return invalid_argument(op, "the query heads must be a multiple of the key/value heads");
  if (dim < 1 || dim > kMaxDim || dim_v < 1 || dim_v > kMaxDim)
    return invalid_argument(op, "head dims must be in 1..256");
  if (q_rows >= kMaxRows || k_rows >= kMaxRows || packs >= kMaxRows)
    return invalid_argument(op, "too many rows");

  AttentionProblem& p = *problem;
  const bool packed = given(options.cu_seqlens_q);
  const int64_t sequences = packed && options.cu_seqlens_q.dimensions().size() == 2
                                ? options.cu_seqlens_q.dimensions()[1] - 1
                                : 1;
  const int64_t all = packs * sequences;
  if (sequences < 0 || all >= kMaxRows || packed != given(options.cu_seqlens_k) ||
      !read_integers(options.cu_seqlens_q, {packs, sequences + 1}, &p.cu_seqlens_q) ||
      !read_integers(options.cu_seqlens_k, {packs, sequences + 1}, &p.cu_seqlens_k))
    return invalid_argument(
        op, "cu_seqlens_q and cu_seqlens_k must both be int32 [packs, sequences + 1]");
  p.packs = static_cast<int>(packs);
  p.sequences = static_cast<int>(sequences);
  p.q_rows = static_cast<int>(q_rows);
  p.k_rows = static_cast<int>(k_rows);
  p.max_q = static_cast<int>(
      packed ? std::clamp<int64_t>(attributes.max_seqlen_q, 1, std::max<int64_t>(q_rows, 1))
             : q_rows);
  p.max_k = static_cast<int>(
      packed ? std::clamp<int64_t>(attributes.max_seqlen_k, 1, std::max<int64_t>(k_rows, 1))
             : k_rows);
  p.heads = static_cast<int>(heads);
  p.kv_heads = static_cast<int>(kv_heads);
  p.group = static_cast<int>(heads / kv_heads);
  p.dim = static_cast<int>(dim);
  p.dim_v = static_cast<int>(dim_v);

  const int64_t bias_rows = packed ? attributes.max_seqlen_q : q_rows;
  const int64_t bias_keys = packed ? attributes.max_seqlen_k : k_rows;
  if (!read_bias(options.bias, all, heads, bias_rows, bias_keys, &p.bias))
    return invalid_argument(op, "bias must be a float or bool [1|B, 1|Hq, 1|S, K]");
  if (!read_per_head(options.sinks, all, heads, &p.sinks, &p.sinks_stride) ||
      !read_per_head(options.alibi_slopes, all, heads, &p.alibi_slopes, &p.alibi_stride))
    return invalid_argument(op, "sinks and alibi_slopes must be float32 [1|B, Hq]");
  if (!read_integers(options.query_lengths, {all}, &p.query_lengths) ||
      !read_integers(options.kv_lengths, {all}, &p.kv_lengths))
    return invalid_argument(op, "lengths must be int32 [B]");
  if (given(options.query_segment_ids) != given(options.kv_segment_ids) ||
      !read_integers(options.query_segment_ids, {packs, q_rows}, &p.query_segments) ||
      !read_integers(options.kv_segment_ids, {packs, k_rows}, &p.kv_segments))
    return invalid_argument(op, "segment ids must both be int32 [B, S] and [B, K]");

  set_mask(attributes, &p);
  p.top_left = attributes.top_left;
  set_data(query, key, value, *dtype, &p);
  if (given(options.dropout_seed) && attributes.dropout_rate > 0.0f) {
    if (!has_shape(options.dropout_seed, ffi::U32, {all, heads, 4}))
      return invalid_argument(op, "dropout_seed must be uint32 [B, Hq, 4]");
    p.dropout_seed = reinterpret_cast<const uint4*>(options.dropout_seed.typed_data<uint32_t>());
    set_dropout_rate(attributes.dropout_rate, &p);
  }
  return ffi::Error::Success();
}

ffi::Error read_paged_problem(const char* op, const ffi::AnyBuffer& query,
                              const ffi::AnyBuffer& qo_indptr, const ffi::AnyBuffer& k_pages,
                              const ffi::AnyBuffer& v_pages, const PageOperands& pages,
                              const ffi::AnyBuffer& sinks, const ffi::AnyBuffer& alibi_slopes,
                              const PagedAttributes& attributes, DType* dtype,
                              AttentionProblem* problem) {
  if (ffi::Error error = read_dtype(op, query, dtype); error.failure()) return error;
  const auto type = query.element_type();
  const auto q = query.dimensions(), k = k_pages.dimensions();
  if (q.size() != 3 || k.size() != 4)
    return invalid_argument(op, "query must have 3 dimensions, k_pages and v_pages 4");
  const int64_t rows = q[0], heads = q[1], dim = q[2];
  const int64_t kv_heads = k[attributes.nhd ? 2 : 1], page_size = k[attributes.nhd ? 1 : 2];
  if (k[3] != dim || !has_shape(k_pages, type, {k[0], k[1], k[2], k[3]}) ||
      !has_shape(v_pages, type, {k[0], k[1], k[2], k[3]}))
    return invalid_argument(op, "k_pages and v_pages must fit query and have its dtype");
  if (kv_heads < 1 || heads % kv_heads != 0)
    return invalid_argument(op, "the query heads must be a multiple of the key/value heads");
  if (dim < 1 || dim > kMaxDim) return invalid_argument(op, "the head dim must be in 1..256");
  const int64_t sequences = qo_indptr.element_count() - 1;
  if (rows >= kMaxRows || sequences < 0 || sequences >= kMaxRows)
    return invalid_argument(op, "qo_indptr must be int32 [B + 1], with less than 2^30 rows");

  AttentionProblem& p = *problem;
  if (!read_integers(qo_indptr, {sequences + 1}, &p.cu_seqlens_q))
    return invalid_argument(op, "qo_indptr must be int32 [B + 1]");
  if (ffi::Error error = read_page_table(op, pages, sequences, k[0], page_size, kv_heads,
                                         attributes.nhd, kMaxRows, &p.pages);
      error.failure())
    return error;
  if (!read_per_head(sinks, sequences, heads, &p.sinks, &p.sinks_stride) ||
      !read_per_head(alibi_slopes, sequences, heads, &p.alibi_slopes, &p.alibi_stride))
    return invalid_argument(op, "sinks and alibi_slopes must be float32 [1|B, Hq]");
  p.packs = 1;
  p.sequences = static_cast<int>(sequences);
  p.q_rows = static_cast<int>(rows);
  p.k_rows = p.max_k = p.pages.max_length;
  p.max_q =
      static_cast<int>(std::clamp<int64_t>(attributes.max_seqlen_q, 1, std::max<int64_t>(rows, 1)));
  p.heads = static_cast<int>(heads);
  p.kv_heads = static_cast<int>(kv_heads);
  p.group = static_cast<int>(heads / kv_heads);
  p.dim = p.dim_v = static_cast<int>(dim);
  set_mask(attributes, &p);
  set_data(query, k_pages, v_pages, *dtype, &p);
  return ffi::Error::Success();
}

}  // namespace jax_baracuda
