// Which calls the Hopper kernel serves, and its grid.
#include <algorithm>
#include <atomic>

#include "attention/hopper/launch.h"
#include "common/device_info.h"
#include "common/tensor_map.h"

namespace jax_baracuda {
namespace {

constexpr int kMaxKernels = 64;
constexpr int64_t kMaxTiles = 1 << 30;  // they are counted in int32

// Keys and values that are read again and again should stay in this part of the L2 cache.
constexpr int64_t kCachedBytes = 32 << 20;

// Under a causal mask and with rows of no more tiles than this, a section has no more heads than fill the SMs so many times, so
// that the keys that are read for the first time are spread over the time of the call.
constexpr int kShortTiles = 8;
constexpr int kShortSectionWaves = 1;

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
int64_t section_rows(const AttentionProblem& p, const HopperPlan& plan, int ctas) {
  // Without a mask all tiles are equal: heads one after the other share the cache best.
  if (!p.causal && !p.cu_seqlens_q) return 1;
  const int64_t head_bytes = int64_t{p.max_k} * (p.dim + p.dim_v) * 2;
  const int64_t lines_a_head = int64_t{p.group / plan.packed} * plan.splits;
  int64_t heads = std::max<int64_t>(kCachedBytes / std::max<int64_t>(head_bytes, 1), 1);
  if (p.causal && plan.tiles(p) <= kShortTiles) {
    const int64_t tiles_a_head = plan.tiles(p) * lines_a_head;
    heads = std::min(heads, (int64_t{kShortSectionWaves} * ctas + tiles_a_head - 1) / tiles_a_head);
  }
  return std::min(heads * lines_a_head, plan.lines(p));
}

TileOrder tile_order(const AttentionProblem& p, const HopperPlan& plan, int ctas, int* counter) {
  TileOrder order;
  order.tiles = static_cast<int>(plan.tiles(p));
  order.rows = static_cast<int>(plan.lines(p));
  order.section = static_cast<int>(section_rows(p, plan, ctas));
  order.counter = plan.tiles(p) * plan.lines(p) > ctas ? counter : nullptr;
  return order;
}

// The queries of a tile: rows of a head, or of the heads of a group.
cudaError_t encode_queries(const HopperCall& call, const ForwardParams& p, CUtensorMap* map) {
  const HopperTile& tile = *call.plan.tile;
  const int columns = panel_columns(tile.dim);
  if (tile.use != TileUse::kFewTiles)
    return encode_tensor_map(call.kernel->dtype, p.query, p.packs, p.q_rows, p.heads, p.dim,
                             tile.m(), columns, map);
  const int64_t row = int64_t{p.heads} * p.dim;
  const TensorBoxes boxes = {{p.dim, p.heads, p.q_rows, p.packs},
                             {p.dim, row, row * std::max(p.q_rows, 1)},
                             {columns, call.plan.packed, call.plan.rows(), 1}};
  return encode_tensor_map(call.kernel->dtype, p.query, boxes, map);
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
      p.pages.indptr || p.k_rows == 0)
    return cudaSuccess;
  int major = 0;
  if (cudaError_t error = compute_major(device, &major); error != cudaSuccess) return error;
  const HopperPlan plan = choose_hopper_plan(p, workspace_bytes - kHopperWorkspaceBytes);
  if (major != 9 || !plan.tile || plan.tiles(p) * plan.lines(p) >= kMaxTiles) return cudaSuccess;
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
  const DType dtype = call.kernel->dtype;
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
  if (cudaError_t error = encode_tensor_map(dtype, p.key, p.packs, p.k_rows, p.kv_heads, p.dim,
                                            tile.n, panel_columns(tile.dim), &params.key);
      error != cudaSuccess)
    return error;
  if (cudaError_t error = encode_tensor_map(dtype, p.value, p.packs, p.k_rows, p.kv_heads, p.dim_v,
                                            tile.n, panel_columns(tile.dim_v), &params.value);
      error != cudaSuccess)
    return error;
  if (params.order.counter) {
    cudaError_t error = cudaMemsetAsync(params.order.counter, 0, sizeof(int), stream);
    if (error != cudaSuccess) return error;
  }
  const int64_t total = int64_t{params.order.tiles} * params.order.rows;
  const int ctas = static_cast<int>(std::min<int64_t>(total, multiprocessors));
  if (cudaError_t error = call.kernel->launch(params, ctas, stream); error != cudaSuccess)
    return error;
  return call.plan.splits > 1 ? call.kernel->combine(params, stream) : cudaSuccess;
}

}  // namespace jax_baracuda
