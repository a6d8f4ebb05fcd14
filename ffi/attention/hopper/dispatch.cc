// Which calls the Hopper kernel serves, and its grid.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>

#include "attention/hopper/launch.h"
#include "common/device_info.h"
#include "common/tensor_map.h"

namespace jax_baracuda {
namespace {

constexpr int kMaxKernels = 128;
constexpr int64_t kMaxTiles = 1 << 30;  // they are counted in int32

// Keys and values that are read again and again should stay in this part of the L2 cache.
constexpr int64_t kCachedBytes = 32 << 20;

// Under a causal mask and with few tiles a row, a section has no more heads than give the SMs so many tiles, so that the
// keys that are read for the first time are spread over the time of the call.
constexpr int kShortTiles = 4, kShortSectionWaves = 2;
constexpr int kMediumTiles = 16, kMediumSectionWaves = 4;

std::atomic<bool> g_ready[kMaxDevices][kMaxKernels];

cudaError_t prepare(int device, const HopperKernel& kernel) {
  const auto index = &kernel - hopper_kernels().data();
  if (device < kMaxDevices && g_ready[device][index].load(std::memory_order_acquire))
    return cudaSuccess;
  const cudaError_t error = kernel.prepare();
  if (error == cudaSuccess && device < kMaxDevices)
    g_ready[device][index].store(true, std::memory_order_release);
  return error;
}

int panel_columns(int dim) { return dim % 64 == 0 ? 64 : 32; }

// Rows of tiles in a section.
int64_t section_rows(const AttentionProblem& p, const HopperPlan& plan, int sms) {
  // Without a mask all tiles are equal: heads one after the other share the cache best.
  if (!p.causal && !p.cu_seqlens_q) return 1;
  const int64_t head_bytes = int64_t{p.max_k} * (p.dim + p.dim_v) * 2;
  const int64_t lines_a_head = int64_t{p.group / plan.packed} * plan.splits;
  int64_t heads = std::max<int64_t>(kCachedBytes / std::max<int64_t>(head_bytes, 1), 1);
  if (p.causal && plan.tiles(p) <= kMediumTiles) {
    const int64_t waves =
        plan.tiles(p) <= kShortTiles ? kShortSectionWaves * plan.tile->ctas() : kMediumSectionWaves;
    const int64_t tiles_a_head = plan.tiles(p) * lines_a_head;
    heads = std::min(heads, (waves * sms + tiles_a_head - 1) / tiles_a_head);
  }
  return std::min(heads * lines_a_head, plan.lines(p));
}

TileOrder tile_order(const AttentionProblem& p, const HopperPlan& plan, int sms, int* counter) {
  TileOrder order;
  order.tiles = static_cast<int>(plan.tiles(p));
  order.rows = static_cast<int>(plan.lines(p));
  order.section = static_cast<int>(section_rows(p, plan, sms));
  const bool handed_out =
      plan.total(p) > sms * plan.tile->ctas() && plan.tile->use != TileUse::kPairs;
  order.counter = handed_out ? counter : nullptr;
  return order;
}

// The polynomial is off by 6.3e-5 of the tangent at the most, up to 0.6; the special function unit by 4.9e-4.
CapExponents cap_exponents(const AttentionProblem& p) {
  constexpr float kLog2E = 1.4426950408889634f;
  constexpr float kMost = 0.6f, kLinear = 0.99993686f, kCubic = -0.33012806f,
                  kQuintic = 0.10839797f;
  CapExponents cap;
  cap.factor = p.scale / p.soft_cap;
  cap.scale = p.soft_cap * kLog2E;
  cap.linear = kLinear * cap.scale * cap.factor;
  cap.cubic = kCubic * cap.scale * cap.factor * cap.factor * cap.factor;
  cap.quintic = kQuintic * cap.scale * std::pow(cap.factor, 5.0f);
  const float most = kMost / cap.factor;
  std::memcpy(&cap.most_bits, &most, sizeof most);
  return cap;
}

// The queries of a tile: rows of a head, or of the heads of a group.
cudaError_t encode_queries(const HopperCall& call, const ForwardParams& p, CUtensorMap* map) {
  const HopperTile& tile = *call.plan.tile;
  const int columns = panel_columns(tile.dim);
  if (tile.features || (tile.use != TileUse::kFewTiles && tile.use != TileUse::kPages))
    return encode_tensor_map(call.kernel->dtype, p.query, p.packs, p.q_rows, p.heads, p.dim,
                             tile.m(), columns, map);
  const int64_t row = int64_t{p.heads} * p.dim;
  const TensorBoxes boxes = {{p.dim, p.heads, p.q_rows, p.packs},
                             {p.dim, row, row * std::max(p.q_rows, 1)},
                             {columns, call.plan.packed, call.plan.rows(), 1}};
  return encode_tensor_map(call.kernel->dtype, p.query, boxes, map);
}

// Boxes of a page that make up a block of n keys.
PageBoxes page_boxes(const PageTable& pages, int n) {
  const int rows = std::gcd(n, static_cast<int>(pages.page_size.divisor));
  return {n / rows, rows};
}

// Pages of fewer rows would make for many small copies.
constexpr int kLeastBoxRows = 16;

// Keys, or values, of rows of `dim` elements, for a tile with rows of `tile_dim`.
cudaError_t encode_keys(const HopperCall& call, const ForwardParams& p, const PageBoxes& boxes,
                        const void* data, int dim, int tile_dim, CUtensorMap* map) {
  const DType dtype = call.kernel->dtype;
  const int columns = panel_columns(tile_dim);
  const PageTable& t = p.pages;
  const HopperTile& tile = *call.plan.tile;
  if (!t.indptr)
    return encode_tensor_map(dtype, data, p.packs, p.k_rows, p.kv_heads, dim,
                             tile.use == TileUse::kPairs ? tile.n / 2 : tile.n, columns, map);
  const int64_t row = dim;
  const TensorBoxes store = {{dim, t.page_size.divisor, p.kv_heads, t.pages},
                             {row * t.token_stride, row * t.head_stride, row * t.page_stride},
                             {columns, boxes.rows, 1, 1}};
  return encode_tensor_map(dtype, data, store, map);
}

// The bias, of which a repeated head or sequence is there once.
cudaError_t encode_bias(const AttentionProblem& p, const HopperTile& tile, CUtensorMap* map) {
  const AttentionBias& bias = p.bias;
  const bool packed = p.cu_seqlens_q != nullptr;
  const int64_t rows = packed ? bias.rows : p.q_rows, keys = packed ? bias.keys : p.k_rows;
  const auto stride_of = [&](int64_t stride) { return stride ? stride : rows * bias.row_stride; };
  const int sequences = p.cu_seqlens_q ? p.packs * p.sequences : p.packs;
  const int halves = bias.type == BiasType::kF32 ? 2 : 1;  // of an element: columns of two bytes
  const TensorBoxes boxes = {
      {keys * halves, rows, bias.head_stride ? p.heads : 1, bias.sequence_stride ? sequences : 1},
      {bias.row_stride * halves, stride_of(bias.head_stride) * halves,
       stride_of(bias.sequence_stride) * halves},
      {64, tile.m(), 1, 1}};
  return encode_tensor_map(bias.type == BiasType::kF16 ? DType::kF16 : DType::kBF16, bias.data,
                           boxes, map);
}

FewTiles few_tiles(const AttentionProblem& p, const HopperPlan& plan, void* splits) {
  FewTiles few;
  few.packed = Divisor(plan.packed);
  few.rows = plan.rows();
  few.splits = plan.splits;
  few.out = static_cast<float*>(splits);
  few.lse = few.out + int64_t{plan.splits} * p.packs * p.q_rows * p.heads * p.dim_v;
  return few;
}

}  // namespace

cudaError_t plan_hopper_forward(int device, DType dtype, const AttentionProblem& p,
                                int64_t workspace_bytes, HopperCall* call) {
  *call = {};
  if (hopper_kernels().empty() || dtype == DType::kF32 || !p.vector_q || !p.vector_v ||
      p.k_rows == 0 || (p.pages.indptr && p.pages.page_size.divisor % kLeastBoxRows != 0))
    return cudaSuccess;
  int major = 0;
  if (cudaError_t error = compute_major(device, &major); error != cudaSuccess) return error;
  const HopperPlan plan =
      choose_hopper_plan(p, hopper_features(p, dtype), workspace_bytes - kHopperWorkspaceBytes);
  if (major != 9 || !plan.tile || plan.total(p) >= kMaxTiles) return cudaSuccess;
  for (const HopperKernel& candidate : hopper_kernels()) {
    if (candidate.dtype != dtype || !(candidate.tile == *plan.tile)) continue;
    *call = {&candidate, plan};
    return prepare(device, candidate);
  }
  return cudaSuccess;
}

cudaError_t launch_hopper_forward(const HopperCall& call, const ForwardParams& p, void* workspace,
                                  cudaStream_t stream) {
  const HopperTile& tile = *call.plan.tile;
  int device = 0, multiprocessors = 0;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (cudaError_t error = multiprocessor_count(device, &multiprocessors); error != cudaSuccess)
    return error;
  HopperForwardParams params;
  params.problem = p;
  params.order = tile_order(p, call.plan, multiprocessors, static_cast<int*>(workspace));
  params.few =
      few_tiles(p, call.plan, static_cast<unsigned char*>(workspace) + kHopperWorkspaceBytes);
  if (cudaError_t error = encode_queries(call, p, &params.query); error != cudaSuccess)
    return error;
  if (tile.features == kBias || tile.features == kFloatBias) {
    if (cudaError_t error = encode_bias(p, tile, &params.bias); error != cudaSuccess) return error;
  }
  if (tile.staged()) {
    if (cudaError_t error = encode_tensor_map(call.kernel->dtype, p.out, p.packs, p.q_rows, p.heads,
                                              p.dim_v, 16, panel_columns(tile.dim_v), &params.out);
        error != cudaSuccess)
      return error;
  }
  if (tile.features == kBoundedCap) params.cap = cap_exponents(p);
  params.boxes = p.pages.indptr ? page_boxes(p.pages, tile.n) : PageBoxes{};
  if (cudaError_t error = encode_keys(call, p, params.boxes, p.key, p.dim, tile.dim, &params.key);
      error != cudaSuccess)
    return error;
  if (cudaError_t error =
          encode_keys(call, p, params.boxes, p.value, p.dim_v, tile.dim_v, &params.value);
      error != cudaSuccess)
    return error;
  if (params.order.counter) {
    cudaError_t error = cudaMemsetAsync(params.order.counter, 0, sizeof(int), stream);
    if (error != cudaSuccess) return error;
  }
  // Without sequences one CTA writes the rows that are of none.
  auto ctas = static_cast<int>(
      std::clamp<int64_t>(call.plan.total(p), 1, int64_t{multiprocessors} * tile.ctas()));
  if (tile.use == TileUse::kPairs) ctas -= ctas % 2;
  if (cudaError_t error = call.kernel->launch(params, ctas, stream); error != cudaSuccess)
    return error;
  return call.plan.splits > 1 ? call.kernel->combine(params, stream) : cudaSuccess;
}

}  // namespace jax_baracuda
