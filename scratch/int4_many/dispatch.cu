// Chooses a compiled kernel for a problem and launches it.
#include <algorithm>
#include <atomic>

#include "common/device_info.h"
#include "common/tensor_map.h"
#include "int4/hopper_params.h"
#include "int4/launch.h"

namespace jax_baracuda {
namespace {

constexpr int kMaxKernels = 128;

std::atomic<bool> g_small_ready[kMaxDevices][kMaxKernels];
std::atomic<bool> g_hopper_ready[kMaxDevices][kMaxKernels];

template <class Kernel>
cudaError_t prepare(const Kernel& kernel, std::atomic<bool>& ready) {
  if (ready.load(std::memory_order_acquire)) return cudaSuccess;
  const cudaError_t error = kernel.prepare();
  if (error == cudaSuccess) ready.store(true, std::memory_order_release);
  return error;
}

// The fastest of the kernels as high as the rows need, or as there are.
void choose_small(const Int4Shape& s, const Int4Device& device, int max_shared, Int4Plan* plan) {
  Int4Split best;
  for (const SmallInt4Kernel& kernel : small_int4_kernels()) {
    if (kernel.dtype != s.dtype || kernel.scale_steps != scale_steps(s) ||
        kernel.tile.blocks != small_blocks(s.rows) || kernel.shared_bytes > max_shared)
      continue;
    const Int4Split split = split_small(s, device, kernel.tile);
    if (!(split < best)) continue;
    plan->small = &kernel;
    best = split;
  }
  plan->splits = best.splits;
  plan->cluster = plan->splits > 1 && device.clusters;
}

// Where the small kernels take it, or none is built: no kernel.
void choose_hopper(const Int4Shape& s, const Int4Device& device, Int4Plan* plan) {
  const HopperChoice choice = choose_hopper(s, device);
  if (small_on_hopper(s, device, choice)) return;
  const int steps = std::min(scale_steps(s), choice.medium ? 8 : 4);
  for (const HopperInt4Kernel& kernel : hopper_int4_kernels())
    if (kernel.dtype == s.dtype && kernel.medium == choice.medium && kernel.tile == choice.tile &&
        kernel.scale_steps == steps)
      plan->hopper = &kernel;
  plan->splits = choice.split.splits;
  plan->cluster = plan->splits > 1 && !choice.split.parts;
  plan->streamed = choice.split.streamed;
}

// A launch, in clusters along the first dimension if there are splits to add up there. The attribute must outlive it.
cudaLaunchConfig_t launch_config(const Int4Plan& plan, dim3 grid, int threads, int shared_bytes,
                                 cudaLaunchAttribute* attribute, cudaStream_t stream) {
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim.x = static_cast<unsigned>(plan.splits);
  attribute->val.clusterDim.y = 1;
  attribute->val.clusterDim.z = 1;
  cudaLaunchConfig_t launch = {};
  launch.gridDim = grid;
  launch.blockDim = dim3(static_cast<unsigned>(threads));
  launch.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  launch.stream = stream;
  launch.attrs = attribute;
  launch.numAttrs = plan.cluster ? 1 : 0;
  return launch;
}

// Rows of so many row blocks at most.
cudaError_t launch_small_rows(const Int4Shape& s, const Int4Plan& plan, Int4Params p,
                              cudaStream_t stream) {
  const SmallInt4Kernel& kernel = *plan.small;
  const int width = kernel.tile.channels(), rows = kernel.tile.rows();
  const dim3 grid(static_cast<unsigned>(plan.splits),
                  static_cast<unsigned>((s.strips * kStrip + width - 1) / width),
                  static_cast<unsigned>((p.rows + rows - 1) / rows));
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t launch =
      launch_config(plan, grid, kernel.tile.threads(), kernel.shared_bytes, &attribute, stream);
  const cudaError_t error = kernel.launch(launch, p);
  if (error != cudaSuccess || !p.partials) return error;
  return launch_int4_combine(s.dtype, p, false, stream);
}

cudaError_t launch_small(const Int4Shape& s, const Int4Plan& plan, Int4Params p,
                         cudaStream_t stream) {
  p.set_splits(plan.splits, (s.depth_tiles + 1) / 2);
  if (plan.splits == 1 || plan.cluster) p.partials = nullptr;
  const int64_t most = kMaxGridZ * plan.small->tile.rows();
  for (int64_t first = 0; first < s.rows; first += most) {
    Int4Params part = p;
    part.rows = static_cast<int>(std::min(most, s.rows - first));
    part.x = static_cast<const char*>(p.x) + first * s.columns * 2;
    part.out = static_cast<char*>(p.out) + first * s.channels * 2;
    if (cudaError_t error = launch_small_rows(s, plan, part, stream); error != cudaSuccess)
      return error;
  }
  return cudaSuccess;
}

// The work of a large kernel and its CTAs on a device of so many SMs.
cudaError_t divide_large(const Int4Shape& s, const Int4Plan& plan, const HopperInt4Tile& tile,
                         int sms, HopperParams* params, int64_t* ctas) {
  const int pair = large_pair(tile.n);
  const LargeDivision d(s, sms, tile);
  if (d.tiles * pair * plan.splits >= int64_t{1} << 31) return cudaErrorInvalidConfiguration;
  params->whole_tiles = static_cast<int>(d.tiles);
  if (plan.splits > 1) {  // CTAs that add up their sums take one tile
    *ctas = d.tiles * pair * plan.splits;
    return cudaSuccess;
  }
  if (plan.streamed) {
    const int64_t units = d.left * s.depth_tiles;
    params->whole_tiles -= static_cast<int>(d.left);
    params->stream_tiles = static_cast<int>(d.left);
    params->stream_units = static_cast<int>(units / d.pairs);
    params->longer_streams = static_cast<int>(units % d.pairs);
  }
  *ctas = pair * (plan.streamed ? d.pairs : std::min<int64_t>(d.tiles, d.pairs));
  return cudaSuccess;
}

cudaError_t launch_hopper(const Int4Shape& s, const Int4Plan& plan, const Int4Params& p,
                          cudaStream_t stream) {
  constexpr int64_t kSectionRows = 1024;  // of x, which L2 holds while weights pass by
  const HopperInt4Kernel& kernel = *plan.hopper;
  const HopperInt4Tile& tile = kernel.medium ? kMediumTiles[kernel.tile] : kLargeTiles[kernel.tile];
  const int pair = kernel.medium ? 1 : large_pair(tile.n);
  HopperParams params = {};
  params.problem = p;
  const bool parts = plan.splits > 1 && !plan.cluster;
  params.problem.partials = plan.streamed || parts ? p.partials : nullptr;
  params.problem.set_splits(
      plan.splits, kernel.medium ? (s.depth_tiles + kMediumUnit - 1) / kMediumUnit : s.depth_tiles);
  if (cudaError_t error = encode_tensor_map(s.dtype, p.x, 1, s.rows, 1, s.columns, tile.n / pair,
                                            kDepth, &params.x);
      error != cudaSuccess)
    return error;
  params.whole_lines = pair > 1 && s.channels % 8 == 0;
  if (params.whole_lines)
    if (cudaError_t error = encode_tensor_map(s.dtype, p.out, 1, s.rows, 1, s.channels, tile.n / 2,
                                              kStrip, &params.out);
        error != cudaSuccess)
      return error;
  params.row_blocks = static_cast<int>((s.rows + tile.n - 1) / tile.n);
  params.channel_blocks = (s.strips * kStrip + tile.channels() - 1) / tile.channels();
  params.section = static_cast<int>(std::min<int64_t>(params.row_blocks, kSectionRows / tile.n));
  dim3 grid(static_cast<unsigned>(plan.splits), static_cast<unsigned>(params.row_blocks),
            static_cast<unsigned>(params.channel_blocks));
  if (!kernel.medium) {
    int device = 0, multiprocessors = 0;
    if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
    if (cudaError_t error = multiprocessor_count(device, &multiprocessors); error != cudaSuccess)
      return error;
    int64_t ctas = 0;
    if (cudaError_t error = divide_large(s, plan, tile, multiprocessors, &params, &ctas);
        error != cudaSuccess)
      return error;
    grid = dim3(static_cast<unsigned>(ctas));
  }
  cudaLaunchAttribute attribute;
  cudaLaunchConfig_t launch =
      launch_config(plan, grid, kernel.threads, kernel.shared_bytes, &attribute, stream);
  if (pair > 1) {
    attribute.val.clusterDim.x = static_cast<unsigned>(pair);
    launch.numAttrs = 1;
  }
  const cudaError_t error = kernel.launch(launch, params);
  if (error != cudaSuccess || !parts) return error;
  return launch_int4_combine(s.dtype, params.problem, true, stream);
}

}  // namespace

cudaError_t plan_int4(const Int4Shape& s, int64_t workspace_bytes, Int4Plan* plan) {
  int device = 0, major = 0, max_shared = 0;
  Int4Device facts;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = multiprocessor_count(device, &facts.sms);
  if (error == cudaSuccess) error = compute_major(device, &major);
  if (error == cudaSuccess) error = max_shared_per_block(device, &max_shared);
  if (error != cudaSuccess) return error;
  if (device >= kMaxDevices) return cudaErrorInvalidDevice;
  facts.clusters = major >= 9;
  facts.workspace_bytes = workspace_bytes;

  *plan = Int4Plan();
  if (major == 9 && s.rows > kFewRows && s.depth_tiles > 0) {
    choose_hopper(s, facts, plan);
    if (plan->hopper && plan->splits > 1 && !plan->cluster) error = prepare_int4_combine(s.dtype);
    if (error != cudaSuccess) return error;
    if (plan->hopper)
      return prepare(*plan->hopper,
                     g_hopper_ready[device][plan->hopper - hopper_int4_kernels().data()]);
    *plan = Int4Plan();
  }
  facts.workspace_bytes = std::min(workspace_bytes, kSmallBytes);
  choose_small(s, facts, max_shared, plan);
  if (!plan->small) return cudaErrorInvalidValue;
  if (plan->splits > 1 && !plan->cluster) error = prepare_int4_combine(s.dtype);
  if (error != cudaSuccess) return error;
  return prepare(*plan->small, g_small_ready[device][plan->small - small_int4_kernels().data()]);
}

cudaError_t launch_int4(const Int4Shape& s, const Int4Plan& plan, Int4Params p,
                        cudaStream_t stream) {
  p.rows = static_cast<int>(s.rows);
  p.columns = s.columns;
  p.channels = s.channels;
  p.strips = s.strips;
  p.depth_tiles = s.depth_tiles;
  p.group_tiles = Divisor(static_cast<uint32_t>(std::max(s.group_size / kDepth, 1)));
  return plan.hopper ? launch_hopper(s, plan, p, stream) : launch_small(s, plan, p, stream);
}

}  // namespace jax_baracuda
