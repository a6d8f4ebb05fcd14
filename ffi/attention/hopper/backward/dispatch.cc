// Which calls the Hopper backward kernels serve, their workspace and their grids.
#include <algorithm>
#include <atomic>

#include "attention/hopper/backward/launch.h"
#include "common/device_info.h"
#include "common/tensor_map.h"

namespace jax_baracuda {
namespace {

constexpr int kMaxKernels = 128;
constexpr int64_t kMaxPlaces = 1ll << 30;  // tiles and row blocks are counted in int32

std::atomic<bool> g_ready[kMaxDevices][kMaxKernels];

cudaError_t prepare(int device, const HopperBackwardKernel& kernel) {
  const auto index = &kernel - hopper_backward_kernels().data();
  if (device < kMaxDevices && g_ready[device][index].load(std::memory_order_acquire))
    return cudaSuccess;
  const cudaError_t error = kernel.prepare();
  if (error == cudaSuccess && device < kMaxDevices)
    g_ready[device][index].store(true, std::memory_order_release);
  return error;
}

int64_t row_blocks_of(const AttentionProblem& p, const HopperBackwardTile& tile) {
  return int64_t{p.packs} * p.heads * row_blocks_of_pack(p, tile.rows);
}
int64_t tiles_of(const AttentionProblem& p) {
  return (p.max_k + kHopperBackwardKeys - 1) / kHopperBackwardKeys;
}
int64_t rows_of(const AttentionProblem& p) { return int64_t{p.packs} * p.sequences * p.kv_heads; }

// The parts of the workspace, each from a multiple of 256 bytes on.
struct Workspace {
  int64_t sums, stats, turns, counter, size;

  Workspace(const AttentionProblem& p, const HopperBackwardTile& tile) {
    const int64_t blocks = row_blocks_of(p, tile);
    take(&sums, 4 * blocks * tile.rows * tile.dim);
    take(&stats, 4 * blocks * 2 * tile.rows);
    take(&turns, 4 * blocks * tile.counters());
    take(&counter, 8);
  }

 private:
  int64_t used_ = 0;
  void take(int64_t* at, int64_t bytes) {
    *at = used_;
    used_ += (bytes + 255) / 256 * 256;
    size = used_;
  }
};

bool is_masked(const BackwardParams& p) {
  return p.causal || p.window_left >= 0 || p.window_right >= 0;
}
bool is_causal(const BackwardParams& p) { return p.causal && p.window_left < 0; }

// Whether what the tiles under way share is more than the L2 cache keeps, if they are spread over all query rows of a section:
// Q, dO and sums.
bool shares_much(const BackwardParams& p, int section, int slots) {
  constexpr int64_t kCacheBytes = 40 << 20;
  const int64_t rows =
      std::min(int64_t{section} * p.max_q, int64_t{2} * slots * kHopperBackwardKeys);
  return rows * p.group * (2 * p.dim + 2 * p.dim_v + 4 * p.dim) > kCacheBytes;
}

// In rows, half of the time that the last one of so many tiles of a row lags behind the first one: as far from its beginning
// the next wave would have to wait for it.
int lag_of_waves(const BackwardParams& p, const HopperBackwardTile& tile, int tiles) {
  constexpr double kAddition = 1.2;  // in the time of a row block
  return static_cast<int>(kAddition / 2 * tiles / p.group) * tile.rows;
}

// Sets the order of the tiles, of which so many run at once.
//
// Rows one by one share the cache best where one has little to share. The last ones come together, long tiles first, so that
// CTAs end together.
//
// Heads of a group are gone over together, so rows share much. Under a causal mask as many come together as make two waves,
// long tiles first. Those of the first wave begin together, at the last query rows, and go backwards; those of the second one
// begin when one of the first has ended, but end together, and go forwards. So tiles meet the same query rows at the same
// time, and what they share is in the L2 cache. A remainder of rows joins the last two waves.
//
// In order, tiles of a row wait for one another, the less the further apart they begin: as many rows as the CTAs hold come
// together, their first tiles, then their second ones. Where a diagonal bounds what tiles see, the last ones of a row are
// short, and nobody waits for long if they begin; but the last rows have the long ones first, so that CTAs end together. What
// they share is spread over all rows of the diagonal: where that is more than the L2 cache keeps, they come in waves, too.
void set_order(const HopperBackwardTile& tile, int slots, HopperBackwardParams* params) {
  const BackwardParams& p = params->problem;
  const int tiles = std::max(params->tiles, 1), rows = params->rows;
  const int two_waves = (2 * slots + tiles - 1) / tiles, wave_rows = std::max(2 * slots / tiles, 1);
  const int at_once = std::clamp(slots / tiles, 1, std::max(rows, 1));
  const int min_tiles = p.deterministic ? 8 : 16;  // of a row
  params->section = 1;
  params->last = std::min(rows, two_waves);
  params->wave = params->lag = params->reverse = 0;
  const bool long_causal = is_causal(p) && tiles >= min_tiles;
  // Few rows of pairs that are longer than a wave begin at the last query rows without waves, too.
  const bool together = tile.ctas() == 2 && wave_rows == 1 && rows <= two_waves;
  const bool waves = p.deterministic ? shares_much(p, at_once, slots) && !together
                                     : tile.ctas() == 1 && !tile.serves_all();
  if (long_causal && waves) {
    params->section = wave_rows;
    params->last = std::min(rows, wave_rows + rows % wave_rows);
    params->wave = slots;
    if (p.deterministic) params->lag = lag_of_waves(p, tile, slots / wave_rows);
  } else if (p.deterministic) {
    params->section = at_once;
    params->last = std::min(rows, std::max(two_waves, at_once));
    params->reverse = is_masked(p) ? rows - params->last : 0;
  }
}

// Whether the main kernel turns sums into dQ itself: a kernel of its own costs the same for every length, so it matters less
// the longer they are.
bool converts_in_main(const HopperBackwardTile& tile, const HopperBackwardParams& params) {
  const BackwardParams& p = params.problem;
  const int max_tiles = is_masked(p) ? 32 : 64;  // of a row
  return tile.ctas() == 1 && !tile.serves_all() && params.tiles <= max_tiles && !p.deterministic &&
         !p.cu_seqlens_q && !p.cu_seqlens_k && p.sequences == 1;
}

// How many rows have sums at once, in turns: they then stay in the L2 cache, but tiles wait where they are done faster than
// their sums are converted, as those of short causal calls, windows and segments are. More than those whose tiles are under
// way or being loaded; the last rows are under way together. With a margin where tiles are short.
int rows_with_sums(const HopperBackwardParams& params) {
  const BackwardParams& p = params.problem;
  const int min_tiles = !is_masked(p) || p.dim <= 64 ? 4 : 8;
  const bool shortened = is_masked(p) && (!is_causal(p) || p.query_segments);
  if (shortened || params.tiles < min_tiles) return params.rows;
  const int margin = is_masked(p) || params.tiles < 8 ? params.last : 0;
  return std::min(params.rows, params.last + params.last / 2 + margin + 1);
}

void set_conversion(const HopperBackwardTile& tile, HopperBackwardParams* params) {
  const BackwardParams& p = params->problem;
  params->done = params->converted = nullptr;
  params->ticket = params->counter + 1;
  params->row_blocks = p.group * p.turn_count;
  params->sum_rows = params->rows;
  params->sum_blocks = static_cast<int>(row_blocks_of(p, tile));
  if (!converts_in_main(tile, *params)) return;
  params->done = p.turns;
  params->converted = p.turns + params->rows;
  params->sum_rows = rows_with_sums(*params);
  if (params->sum_rows < params->rows) params->sum_blocks = params->sum_rows * params->row_blocks;
}

// Whether CTAs may share tiles by query rows: where no mask makes some shorter than others, they all end at the same time, and
// in the last round some have nothing to do.
bool may_divide(const HopperBackwardTile& tile, const BackwardParams& p) {
  return tile.divides() && !p.deterministic && !p.bias_sums && !is_masked(p) && !p.query_segments &&
         !p.query_lengths && !p.kv_lengths && !p.cu_seqlens_q && !p.cu_seqlens_k &&
         p.sequences == 1;
}

// Floats that nobody else needs while the main kernel runs, and where they are: where rows have sums in common, those of the
// others; where a kernel of its own writes dQ, dQ.
struct FreeFloats {
  float* at;
  int64_t count;

  FreeFloats(const HopperBackwardTile& tile, const HopperBackwardParams& params) {
    const BackwardParams& p = params.problem;
    const int64_t block = int64_t{tile.rows} * tile.dim;
    if (params.sum_rows < params.rows) {
      at = p.dq_sum + params.sum_blocks * block;
      count = (row_blocks_of(p, tile) - params.sum_blocks) * block;
    } else {
      at = static_cast<float*>(p.dq);
      count = int64_t{p.packs} * p.q_rows * p.heads * p.dim / 2;
    }
  }
};

// When the last tiles, those that do not fill all slots, are done if each has so many parts, in the time of a row block.
int64_t time_of_parts(const HopperBackwardParams& params, int tiles, int parts, int slots) {
  constexpr int kBeginAndEnd = 4;
  const BackwardParams& p = params.problem;
  const int64_t rounds = (int64_t{tiles} * parts + slots - 1) / slots;
  return rounds * (int64_t{(p.turn_count + parts - 1) / parts} * p.group + kBeginAndEnd);
}

// Divides the tiles of the last round.
void divide_last_tiles(const HopperBackwardTile& tile, int slots, HopperBackwardParams* params) {
  constexpr int kMaxParts = 16, kWarps = 8;
  const BackwardParams& p = params->problem;
  const int64_t all = int64_t{params->tiles} * params->rows;
  params->places = static_cast<int>(all);
  params->divided = 0;
  params->parts = 1;
  if (!may_divide(tile, p)) return;
  const int tiles = static_cast<int>(all % slots);
  const FreeFloats room(tile, *params);
  const int64_t of_part = kHopperBackwardKeys * int64_t{tile.dim + tile.dim_v};
  const int64_t counters = tile.counters() * row_blocks_of(p, tile) - 2 * params->rows;
  const auto time = [&](int parts) { return time_of_parts(*params, tiles, parts, slots); };
  int best = 1;
  for (int parts = 2; parts <= std::min(kMaxParts, p.turn_count); ++parts)
    if (tiles * parts * of_part <= room.count && time(parts) < time(best)) best = parts;
  // What the tiles before take does not change. A kernel of its own for dQ has to be worth it.
  const bool ends_conversion = params->done && room.at == p.dq;
  const int64_t before = all / slots * time_of_parts(*params, 1, 1, slots);
  if (best == 1 || tiles * kWarps > counters ||
      (ends_conversion && (before + time(best)) * 10 > (before + time(1)) * 9))
    return;
  if (ends_conversion) params->done = nullptr;
  params->divided = tiles;
  params->parts = best;
  params->places += tiles * (best - 1);
  params->left = room.at;
  params->left_all = p.turns + 2 * params->rows;
}

// Whether there is such a kernel for a problem: a bias is its one option.
bool has_bias_gradient(DType dtype, const BiasGradParams& p) {
  return dtype != DType::kF32 && p.vector_q && p.vector_v && p.packs > 0 && p.q_rows > 0 &&
         p.k_rows > 0 && features_of(p) == kBias && !p.query_segments;
}

}  // namespace

int64_t hopper_backward_workspace_bytes(const BackwardParams& p) {
  const HopperBackwardTile tile = choose_hopper_backward_tile(p);
  return tile.rows > 0 ? Workspace(p, tile).size : 0;
}

cudaError_t plan_hopper_backward(int device, DType dtype, const BackwardParams& p,
                                 const HopperBackwardKernel** kernel) {
  *kernel = nullptr;
  if (hopper_backward_kernels().empty() || dtype == DType::kF32 || !p.vector_q || !p.vector_v ||
      p.q_rows == 0 || p.k_rows == 0)
    return cudaSuccess;
  int major = 0;
  if (cudaError_t error = compute_major(device, &major); error != cudaSuccess) return error;
  const HopperBackwardTile tile = choose_hopper_backward_tile(p);
  if (major != 9 || tile.rows == 0 || row_blocks_of(p, tile) >= kMaxPlaces ||
      tiles_of(p) * rows_of(p) >= kMaxPlaces)
    return cudaSuccess;
  for (const HopperBackwardKernel& candidate : hopper_backward_kernels()) {
    if (candidate.dtype != dtype || !(candidate.tile == tile)) continue;
    *kernel = &candidate;
    return prepare(device, candidate);
  }
  return cudaSuccess;
}

cudaError_t launch_hopper_backward(const HopperBackwardKernel& kernel, BackwardParams p,
                                   void* workspace, cudaStream_t stream) {
  const HopperBackwardTile& tile = kernel.tile;
  const Workspace parts(p, tile);
  char* base = static_cast<char*>(workspace);
  p.dq_sum = reinterpret_cast<float*>(base + parts.sums);
  p.lse2 = reinterpret_cast<float*>(base + parts.stats);
  p.turns = reinterpret_cast<int*>(base + parts.turns);
  p.turn_count = row_blocks_of_pack(p, tile.rows);
  HopperBackwardParams params;
  params.problem = p;
  params.tiles = static_cast<int>(tiles_of(p));
  params.rows = static_cast<int>(rows_of(p));
  params.counter = reinterpret_cast<int*>(base + parts.counter);
  const auto encode = [&](const void* data, int rows, int heads, int dim, int box_rows,
                          int tile_dim, CUtensorMap* map) {
    return encode_tensor_map(kernel.dtype, data, p.packs, rows, heads, dim, box_rows,
                             tile.panel(tile_dim), map);
  };
  cudaError_t error = encode(p.query, p.q_rows, p.heads, p.dim, tile.rows, tile.dim, &params.query);
  if (error == cudaSuccess)
    error = encode(p.dout, p.q_rows, p.heads, p.dim_v, tile.rows, tile.dim_v, &params.dout);
  if (error == cudaSuccess)
    error = encode(p.key, p.k_rows, p.kv_heads, p.dim, tile.cta_keys(), tile.dim, &params.key);
  if (error == cudaSuccess)
    error =
        encode(p.value, p.k_rows, p.kv_heads, p.dim_v, tile.cta_keys(), tile.dim_v, &params.value);
  int device = 0, multiprocessors = 0;
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = multiprocessor_count(device, &multiprocessors);
  if (error != cudaSuccess) return error;
  set_order(tile, multiprocessors / tile.ctas(), &params);
  set_conversion(tile, &params);
  divide_last_tiles(tile, multiprocessors, &params);
  // A pair has one tile, and there are less than 2^30 of them.
  const int ctas =
      tile.ctas() == 1 ? std::min(params.places, multiprocessors) : tile.ctas() * params.places;
  const int row_blocks = std::max((p.max_q + tile.rows - 1) / tile.rows, 1);
  return kernel.launch(params, row_blocks, ctas, stream);
}

cudaError_t plan_hopper_bias_gradient(DType dtype, const BiasGradParams& p,
                                      const HopperBiasGradient** kernel) {
  *kernel = nullptr;
  if (hopper_bias_gradients().empty() || !has_bias_gradient(dtype, p)) return cudaSuccess;
  int device = 0, major = 0;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (cudaError_t error = compute_major(device, &major); error != cudaSuccess) return error;
  if (major != 9) return cudaSuccess;
  for (const HopperBiasGradient& candidate : hopper_bias_gradients()) {
    if (candidate.dtype != dtype) continue;
    *kernel = &candidate;
    return candidate.prepare();
  }
  return cudaSuccess;
}

cudaError_t launch_hopper_bias_gradient(const HopperBiasGradient& kernel, const BiasGradParams& p,
                                        unsigned ctas, cudaStream_t stream) {
  constexpr int kColumns = 64;
  HopperBiasGradParams params;
  params.problem = p;
  const auto encode = [&](const void* data, int rows, int heads, int dim, CUtensorMap* map) {
    return encode_tensor_map(kernel.dtype, data, p.packs, rows, heads, dim, kernel.side, kColumns,
                             map);
  };
  cudaError_t error = encode(p.query, p.q_rows, p.heads, p.dim, &params.query);
  if (error == cudaSuccess) error = encode(p.dout, p.q_rows, p.heads, p.dim_v, &params.dout);
  if (error == cudaSuccess) error = encode(p.key, p.k_rows, p.kv_heads, p.dim, &params.key);
  if (error == cudaSuccess) error = encode(p.value, p.k_rows, p.kv_heads, p.dim_v, &params.value);
  return error == cudaSuccess ? kernel.launch(params, ctas, stream) : error;
}

}  // namespace jax_baracuda
