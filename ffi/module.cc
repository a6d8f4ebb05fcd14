// The Python face of the library: handlers as capsules, facts about the build, the split heuristic.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "attention/backward/config.h"
#include "attention/backward/handler.h"
#include "attention/forward/config.h"
#include "attention/forward/handler.h"
#include "attention/hopper/config.h"
#include "cache/handler.h"
#include "decode/config.h"
#include "decode/handler.h"
#include "int4/config.h"
#include "int4/handler.h"
#include "xla/ffi/api/c_api.h"

namespace nb = nanobind;

namespace jax_baracuda {
namespace {

using Handler = XLA_FFI_Error* (*)(XLA_FFI_CallFrame*);

nb::capsule capsule(Handler handler) { return nb::capsule(reinterpret_cast<void*>(handler)); }

nb::dict target(Handler initialize, Handler execute) {
  nb::dict stages;
  stages["initialize"] = capsule(initialize);
  stages["execute"] = capsule(execute);
  return stages;
}

nb::dict registrations() {
  nb::dict targets;
  targets["jax_baracuda_flash_decode"] = target(flash_decode_initialize, flash_decode_execute);
  targets["jax_baracuda_paged_decode"] = target(paged_decode_initialize, paged_decode_execute);
  targets["jax_baracuda_flash_attention"] =
      target(flash_attention_initialize, flash_attention_execute);
  targets["jax_baracuda_paged_prefill"] = target(paged_prefill_initialize, paged_prefill_execute);
  targets["jax_baracuda_flash_attention_backward"] =
      target(flash_attention_backward_initialize, flash_attention_backward_execute);
  targets["jax_baracuda_flash_attention_bias_grad"] =
      target(flash_attention_bias_grad_initialize, flash_attention_bias_grad_execute);
  targets["jax_baracuda_append"] = target(append_initialize, append_execute);
  targets["jax_baracuda_rope"] = target(rope_initialize, rope_execute);
  targets["jax_baracuda_int4_matmul"] = target(int4_matmul_initialize, int4_matmul_execute);
  return targets;
}

nb::dict build_info() {
  nb::dict info;
  info["version"] = JAX_BARACUDA_VERSION;
  info["cuda_archs"] = JAX_BARACUDA_CUDA_ARCHS_STR;
  info["cuda_version"] = JAX_BARACUDA_CUDA_VERSION;
  info["ffi_api"] = std::to_string(XLA_FFI_API_MAJOR) + "." + std::to_string(XLA_FFI_API_MINOR);
  return info;
}

DType dtype_of(const std::string& name) {
  if (name == "float16") return DType::kF16;
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float32") return DType::kF32;
  throw std::invalid_argument("dtype must be float16, bfloat16 or float32, got " + name);
}

// What the handler would choose on a device with `sms` multiprocessors of which each holds
// `ctas_per_sm` CTAs of this kernel and has `ring_shared` bytes of shared memory for rings (0: none), and where `pairs`
// clusters of two and `wide_clusters` of eight fit.
nb::dict decode_plan(const std::string& dtype, int batch, int kv_heads, int group, int head_dim,
                     int kv_capacity, bool uneven_lengths, int num_splits, int sms, int ctas_per_sm,
                     int pairs, int64_t workspace_bytes, bool adjacent_rows, int wide_clusters,
                     int ring_shared, bool paged, int table_entries) {
  DecodeShape shape;
  shape.dtype = dtype_of(dtype);
  shape.batch = batch;
  shape.kv_heads = kv_heads;
  shape.group = group;
  shape.head_dim = head_dim;
  shape.kv_capacity = kv_capacity;
  shape.uneven_lengths = uneven_lengths;
  shape.num_splits = num_splits;
  shape.adjacent_rows = adjacent_rows;
  shape.paged = paged;
  shape.table_entries = table_entries;
  DecodeDevice device;
  device.sms = sms;
  device.ctas_per_sm = ctas_per_sm;
  device.pairs = pairs;
  device.wide_clusters = wide_clusters;
  device.wide_ring_clusters = ring_shared > 0 ? wide_clusters : 0;
  device.ring_shared = ring_shared;
  DecodeConfig config = choose_layout(shape);
  choose_schedule(shape, device, workspace_bytes / partial_bytes(shape, config), config);
  nb::dict plan;
  plan["dim_tile"] = config.dim_tile;
  plan["head_tile"] = config.head_tile;
  plan["vector"] = config.vector;
  plan["slices"] = config.slices;
  plan["token_warps"] = config.token_warps;
  plan["chunk_tokens"] = config.chunk_tokens;
  plan["block_heads"] = config.block_heads;
  plan["head_blocks"] = config.head_blocks;
  plan["shared_bytes"] = config.shared_bytes;
  plan["ring_stages"] = config.ring_stages;
  plan["table_offset"] = config.table_offset;
  plan["splits"] = config.splits;
  plan["cluster"] = config.cluster;
  plan["ctas"] = config.ctas;
  plan["lanes"] = config.lanes;
  plan["even_ctas"] = config.even_ctas;
  plan["workspace_bytes"] = jax_baracuda::workspace_bytes(shape, config);
  return plan;
}

// The tiles that the handlers of flash_attention would choose where an SM has `sm_shared` bytes of shared
// memory and a CTA may have `cta_shared`. Empty: no kernel.
nb::dict attention_tiles(const std::string& dtype, bool features, int head_dim, int value_dim,
                         int sm_shared, int cta_shared) {
  const DType type = dtype_of(dtype);
  const int element = type == DType::kF32 ? 4 : 2;
  nb::dict tiles;
  if (const ForwardTile* tile = choose_forward_tile(element, features || element == 4, false,
                                                    head_dim, value_dim, sm_shared, cta_shared)) {
    nb::dict forward;
    forward["dim"] = tile->dim;
    forward["dim_v"] = tile->dim_v;
    forward["rows"] = tile->m;
    forward["keys"] = tile->n;
    forward["shared_bytes"] = tile->shared_bytes();
    tiles["forward"] = forward;
  }
  const BackwardChoice choice =
      choose_backward_tile(type, head_dim, value_dim, cta_shared - kBackwardStaticBytes);
  if (choice.tile) {
    nb::dict backward;
    backward["dim"] = choice.tile->dim;
    backward["dim_v"] = choice.tile->dim_v;
    backward["rows"] = choice.tile->rows;
    backward["keys"] = choice.tile->keys;
    backward["shared_bytes"] = choice.tile->shared_bytes(element, choice.stages);
    tiles["backward"] = backward;
  }
  return tiles;
}

// What int4_matmul would run on a Hopper GPU, for float16, and the nanoseconds that the heuristic expects of it.
nb::dict int4_plan(int64_t rows, int in_channels, int out_channels, int group_size, int sms) {
  Int4Shape shape = {};
  shape.dtype = DType::kF16;
  shape.rows = rows;
  shape.columns = in_channels;
  shape.channels = out_channels;
  shape.strips = (out_channels + kStrip - 1) / kStrip;
  shape.depth_tiles = (in_channels + kDepth - 1) / kDepth;
  shape.group_size = group_size;
  Int4Device device = {};
  device.sms = sms;
  device.clusters = true;
  device.workspace_bytes =
      int4_workspace_bytes(rows, int64_t{shape.strips} * kStrip, shape.depth_tiles);
  nb::dict plan;
  const HopperChoice choice = choose_hopper(shape, device);
  if (small_on_hopper(shape, device, choice)) {
    const SmallChoice small = choose_small(shape, device);
    const SmallTile& tile = kSmallTiles[small.tile];
    plan["kernel"] = "small";
    plan["channels"] = tile.channels();
    plan["rows"] = tile.rows();
    plan["depth_groups"] = tile.depth_warps;
    plan["splits"] = small.split.splits;
    plan["ns"] = small.split.ns;
    return plan;
  }
  const HopperInt4Tile& tile = choice.medium ? kMediumTiles[choice.tile] : kLargeTiles[choice.tile];
  plan["kernel"] = choice.medium ? "medium" : "large";
  plan["channels"] = tile.channels();
  plan["rows"] = tile.n;
  plan["depth_groups"] = tile.depth_groups;
  plan["splits"] = choice.split.splits;
  plan["parts"] = choice.split.parts;
  plan["streamed"] = choice.split.streamed;
  plan["ns"] = choice.split.ns;
  return plan;
}

// What the Hopper forward kernel would do with a call: the tile, how many heads share its rows, over how many CTAs its
// keys are split. Empty: it does not take the head dims. `query_rows`: of a sequence; with `paged` of all of them.
// `features`: a sum of Feature. `split_bytes`: of the workspace, for splits.
nb::dict hopper_plan(int features, bool causal, int packs, int sequences, int query_rows, int keys,
                     int q_heads, int kv_heads, int head_dim, int value_dim, int64_t split_bytes,
                     bool paged) {
  AttentionProblem p = {};
  const int32_t bounds = 0;
  p.pages.indptr = paged ? &bounds : nullptr;  // is looked at, not read
  p.scale = 1.0f;
  p.vector_q = p.vector_v = 1;
  p.window_left = p.window_right = -1;
  p.causal = causal;
  p.packs = packs;
  p.sequences = sequences;
  p.q_rows = p.max_q = query_rows;
  p.k_rows = p.max_k = keys;
  p.heads = q_heads;
  p.kv_heads = kv_heads;
  p.group = q_heads / kv_heads;
  p.dim = head_dim;
  p.dim_v = value_dim;
  const HopperPlan chosen = choose_hopper_plan(p, features, split_bytes);
  nb::dict plan;
  if (!chosen.tile) return plan;
  plan["dim"] = chosen.tile->dim;
  plan["dim_v"] = chosen.tile->dim_v;
  plan["rows"] = chosen.tile->m();
  plan["keys"] = chosen.tile->n;
  plan["use"] = static_cast<int>(chosen.tile->use);
  plan["packed"] = chosen.packed;
  plan["splits"] = chosen.splits;
  plan["tiles"] = chosen.total(p);
  return plan;
}

}  // namespace

NB_MODULE(_ffi, m) {
  m.doc() = "CUDA kernels of jax_baracuda as XLA FFI handlers";
  m.def("registrations", &registrations);
  m.def("build_info", &build_info);
  m.def("decode_plan", &decode_plan, nb::kw_only(), nb::arg("dtype"), nb::arg("batch"),
        nb::arg("kv_heads"), nb::arg("group"), nb::arg("head_dim"), nb::arg("kv_capacity"),
        nb::arg("uneven_lengths"), nb::arg("num_splits"), nb::arg("sms"), nb::arg("ctas_per_sm"),
        nb::arg("pairs"), nb::arg("workspace_bytes"), nb::arg("adjacent_rows") = false,
        nb::arg("wide_clusters") = 0, nb::arg("ring_shared") = 0, nb::arg("paged") = false,
        nb::arg("table_entries") = 0);
  m.def("attention_tiles", &attention_tiles, nb::kw_only(), nb::arg("dtype"), nb::arg("features"),
        nb::arg("head_dim"), nb::arg("value_dim"), nb::arg("sm_shared"), nb::arg("cta_shared"));
  m.def("int4_plan", &int4_plan, nb::kw_only(), nb::arg("rows"), nb::arg("in_channels"),
        nb::arg("out_channels"), nb::arg("group_size"), nb::arg("sms"));
  m.def("hopper_plan", &hopper_plan, nb::kw_only(), nb::arg("features"), nb::arg("causal"),
        nb::arg("packs"), nb::arg("sequences"), nb::arg("query_rows"), nb::arg("keys"),
        nb::arg("q_heads"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("value_dim"),
        nb::arg("split_bytes"), nb::arg("paged") = false);
}

}  // namespace jax_baracuda
