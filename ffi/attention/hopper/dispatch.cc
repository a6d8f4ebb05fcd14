// Which calls the Hopper kernel serves, and its grid.
#include <algorithm>
#include <atomic>
#include <numeric>

#include "attention/hopper/launch.h"
#include "common/device_info.h"
#include "common/tensor_map.h"

namespace jax_baracuda {
namespace {

constexpr int kMaxKernels = 64;
constexpr int64_t kMaxTiles = 1 << 30;  // they are counted in int32

// Keys and values that are read again and again should stay in this part of the L2 cache.
constexpr int64_t kCachedBytes = 32 << 20;

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

int64_t rows_of(const AttentionProblem& p) { return int64_t{p.packs} * p.sequences * p.heads; }

int tiles_of(const AttentionProblem& p, const HopperTile& tile) {
  return (p.max_q + tile.m() - 1) / tile.m();
}

TileOrder tile_order(const AttentionProblem& p, const HopperTile& tile, int* counter) {
  TileOrder order;
  order.tiles = tiles_of(p, tile);
  order.rows = static_cast<int>(rows_of(p));
  const int64_t head_bytes = int64_t{p.max_k} * (p.dim + p.dim_v) * 2;
  const int64_t section =
      std::max<int64_t>(kCachedBytes / std::max<int64_t>(head_bytes, 1), 1) * p.group;
  // Without a mask all tiles are equal: heads one after the other share the cache best.
  order.section =
      p.causal || p.cu_seqlens_q ? static_cast<int>(std::min<int64_t>(section, order.rows)) : 1;
  order.counter = counter;
  return order;
}

// Boxes of a page that make up a block of n keys.
PageBoxes page_boxes(const PageTable& pages, int n) {
  const int rows = std::gcd(n, static_cast<int>(pages.page_size.divisor));
  return {n / rows, rows};
}

// Pages of fewer rows would make for many small copies.
constexpr int kLeastBoxRows = 16;

int panel_columns(int dim) { return dim % 64 == 0 ? 64 : 32; }

// Keys, or values, of rows of `dim` elements, for a tile with rows of `tile_dim`.
cudaError_t encode_keys(const HopperKernel& kernel, const ForwardParams& p, const PageBoxes& boxes,
                        const void* data, int dim, int tile_dim, CUtensorMap* map) {
  if (!kernel.paged)
    return encode_tensor_map(kernel.dtype, data, p.packs, p.k_rows, p.kv_heads, dim, kernel.tile.n,
                             panel_columns(tile_dim), map);
  const PageTable& t = p.pages;
  const int64_t row = dim;
  const TensorBoxes store = {{dim, t.page_size.divisor, p.kv_heads, t.pages},
                             {row * t.token_stride, row * t.head_stride, row * t.page_stride},
                             {panel_columns(tile_dim), boxes.rows, 1, 1}};
  return encode_tensor_map(kernel.dtype, data, store, map);
}

// Of a sequence: pages are given for all of them together.
int keys_of(const AttentionProblem& p) {
  return p.pages.indptr ? p.max_k / std::max(p.sequences, 1) : p.max_k;
}

// Tiles at most; of sequences that overlap there may be more.
int64_t most_tiles(const AttentionProblem& p, const HopperTile& tile) {
  if (!p.pages.indptr) return tiles_of(p, tile) * rows_of(p);
  return (int64_t{p.q_rows} / tile.m() + p.sequences) * p.heads;
}

}  // namespace

cudaError_t plan_hopper_forward(int device, DType dtype, const AttentionProblem& p,
                                const HopperKernel** kernel) {
  *kernel = nullptr;
  if (hopper_kernels().empty() || dtype == DType::kF32 || !p.vector_q || !p.vector_v ||
      p.k_rows == 0)
    return cudaSuccess;
  const bool paged = p.pages.indptr != nullptr;
  if (paged && p.pages.page_size.divisor % kLeastBoxRows != 0) return cudaSuccess;
  int major = 0;
  if (cudaError_t error = compute_major(device, &major); error != cudaSuccess) return error;
  const HopperTile* tile =
      choose_hopper_tile(has_features(p), paged, p.dim, p.dim_v, p.causal, keys_of(p));
  if (major != 9 || !tile || most_tiles(p, *tile) >= kMaxTiles) return cudaSuccess;
  for (const HopperKernel& candidate : hopper_kernels()) {
    if (candidate.dtype != dtype || candidate.paged != paged || !(candidate.tile == *tile))
      continue;
    *kernel = &candidate;
    return prepare(device, candidate);
  }
  return cudaSuccess;
}

cudaError_t launch_hopper_forward(const HopperKernel& kernel, const ForwardParams& p,
                                  void* workspace, cudaStream_t stream) {
  const HopperTile& tile = kernel.tile;
  HopperForwardParams params;
  params.problem = p;
  params.order = tile_order(p, tile, static_cast<int*>(workspace));
  params.boxes = kernel.paged ? page_boxes(p.pages, tile.n) : PageBoxes{};
  if (cudaError_t error =
          encode_tensor_map(kernel.dtype, p.query, p.packs, p.q_rows, p.heads, p.dim, tile.m(),
                            panel_columns(tile.dim), &params.query);
      error != cudaSuccess)
    return error;
  if (cudaError_t error = encode_keys(kernel, p, params.boxes, p.key, p.dim, tile.dim, &params.key);
      error != cudaSuccess)
    return error;
  if (cudaError_t error =
          encode_keys(kernel, p, params.boxes, p.value, p.dim_v, tile.dim_v, &params.value);
      error != cudaSuccess)
    return error;
  int device = 0, multiprocessors = 0;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (cudaError_t error = multiprocessor_count(device, &multiprocessors); error != cudaSuccess)
    return error;
  if (cudaError_t error = cudaMemsetAsync(params.order.counter, 0, sizeof(int), stream);
      error != cudaSuccess)
    return error;
  // Without sequences one CTA writes the rows that are of none.
  const int64_t ctas = std::clamp<int64_t>(most_tiles(p, tile), 1, multiprocessors);
  return kernel.launch(params, static_cast<int>(ctas), stream);
}

}  // namespace jax_baracuda
