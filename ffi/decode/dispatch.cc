// Chooses a compiled kernel for a problem, plans its launch for the current device, and launches it.
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "common/device_info.h"
#include "decode/config.h"
#include "decode/launch.h"

namespace jax_baracuda {
namespace {

constexpr int kMaxKernels = 128;

int find_kernel(DType dtype, const DecodeConfig& c) {
  const std::vector<DecodeKernel>& kernels = decode_kernels();
  const auto found = std::find_if(kernels.begin(), kernels.end(), [&](const DecodeKernel& k) {
    return k.dtype == dtype && k.dim_tile == c.dim_tile && k.head_tile == c.head_tile &&
           k.vector == c.vector && k.paged == c.paged && k.ring == (c.ring_stages > 0);
  });
  return found == kernels.end() ? -1 : static_cast<int>(found - kernels.begin());
}

// What was learnt of a kernel on a device. Threads that race store the same answers.
struct KernelState {
  std::atomic<bool> prepared{false};
  std::atomic<bool> clusters{false};   // whether its code knows of clusters and of early launches
  std::atomic<int> pairs{0}, wide{0};  // clusters that run at once; see DecodeDevice
  std::atomic<uint64_t> occupancy{0};  // threads << 40 | shared bytes << 8 | CTAs per SM
};
KernelState g_states[kMaxDevices][kMaxKernels];

// A launch of `config`, in clusters if `cluster_size` > 1. The attribute must outlive it.
cudaLaunchConfig_t launch_config(const DecodeConfig& c, int64_t ctas, int cluster_size,
                                 cudaLaunchAttribute* attribute, cudaStream_t stream) {
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim.x = static_cast<unsigned>(cluster_size);
  attribute->val.clusterDim.y = 1;
  attribute->val.clusterDim.z = 1;
  cudaLaunchConfig_t launch = {};
  launch.gridDim = dim3(static_cast<unsigned>(ctas));
  launch.blockDim = dim3(static_cast<unsigned>(c.warps() * 32));
  launch.dynamicSmemBytes = static_cast<size_t>(c.shared_bytes);
  launch.stream = stream;
  launch.attrs = attribute;
  launch.numAttrs = cluster_size > 1 ? 1 : 0;
  return launch;
}

// How many clusters run at once; 0 where the device cannot take them.
int measure_clusters(const DecodeKernel& kernel, const DecodeConfig& layout, int size) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t launch = launch_config(layout, size, size, &attribute, nullptr);
  int clusters = 0;
  if (kernel.active_clusters(launch, &clusters) == cudaSuccess) return clusters;
  cudaGetLastError();  // not an error of ours
  return 0;
}

// The layout with the most warps and shared memory that a kernel is launched with in clusters.
DecodeConfig largest_layout(const DecodeKernel& kernel, bool clusters) {
  const int warps = max_warps(kernel.dtype, kernel.dim_tile, kernel.head_tile, kernel.vector);
  DecodeConfig largest;
  largest.shared_bytes = kMostSharedForTwoBuffers;
  largest.slices = 1;
  largest.token_warps = warps;
  for (int slices = 1; slices <= kMaxSlices; ++slices) {
    const int token_warps = slices == 1 ? warps : token_warps_for(slices);
    const auto bytes = [&](int pieces) {
      return decode_shared_bytes(kernel.dtype, kernel.dim_tile, kernel.head_tile, slices,
                                 token_warps, slices * kernel.head_tile, 1, pieces);
    };
    largest.shared_bytes = std::max(largest.shared_bytes, bytes(1));
    if (clusters)  // what is larger than that is not used
      for (const int pieces : {2, kWideCluster})
        largest.shared_bytes =
            std::max(largest.shared_bytes, std::min(bytes(pieces), kMostClusterShared));
  }
  return largest;
}

// Of a kernel that reads through rings: all the shared memory that a CTA may have.
cudaError_t largest_ring_layout(int device, DecodeConfig* largest) {
  largest->slices = 1;
  largest->token_warps = kMaxRingWarps;
  return max_shared_per_block(device, &largest->shared_bytes);
}

// Raises the kernel's limits on the current device and measures what fits there, once. The code for older devices,
// which the driver may have compiled for this one, knows nothing of clusters.
cudaError_t prepare(const DecodeKernel& kernel, int device, int major, KernelState& state) {
  if (state.prepared.load(std::memory_order_acquire)) return cudaSuccess;
  cudaFuncAttributes attributes;
  cudaError_t error = kernel.attributes(&attributes);
  if (error != cudaSuccess) return error;
  const bool clusters = major >= 9 && attributes.ptxVersion >= 90;
  DecodeConfig largest;
  if (kernel.ring)
    error = largest_ring_layout(device, &largest);
  else
    largest = largest_layout(kernel, clusters);
  if (error == cudaSuccess) error = kernel.prepare(largest.shared_bytes);
  if (error == cudaSuccess) error = prepare_combine(kernel.dtype, kernel.dim_tile);
  if (error != cudaSuccess) return error;
  if (clusters) {
    state.pairs.store(measure_clusters(kernel, largest, 2), std::memory_order_relaxed);
    state.wide.store(measure_clusters(kernel, largest, kWideCluster), std::memory_order_relaxed);
  }
  state.clusters.store(clusters, std::memory_order_relaxed);
  state.prepared.store(true, std::memory_order_release);
  return cudaSuccess;
}

cudaError_t occupancy(const DecodeKernel& kernel, const DecodeConfig& c, KernelState& state,
                      int* ctas_per_sm) {
  const uint64_t key = uint64_t(c.warps() * 32) << 40 | uint64_t(c.shared_bytes) << 8;
  const uint64_t stored = state.occupancy.load(std::memory_order_relaxed);
  if ((stored & ~uint64_t{0xff}) == key) {
    *ctas_per_sm = static_cast<int>(stored & 0xff);
    return cudaSuccess;
  }
  cudaError_t error = kernel.occupancy(c.warps() * 32, c.shared_bytes, ctas_per_sm);
  if (error == cudaSuccess)
    state.occupancy.store(key | uint64_t(*ctas_per_sm), std::memory_order_relaxed);
  return error;
}

// What the schedule needs to know of the kernel that reads this layout through rings, if there is one that runs here.
cudaError_t describe_rings(const DecodeShape& shape, const DecodeConfig& layout, int ordinal,
                           int major, DecodeDevice* device) {
  if (major < 9 || !has_rings(shape, layout)) return cudaSuccess;
  DecodeConfig ring = layout;
  ring.ring_stages = 1;
  const int index = find_kernel(shape.dtype, ring);
  if (index < 0 || index >= kMaxKernels) return cudaSuccess;
  KernelState& state = g_states[ordinal][index];
  const cudaError_t error = prepare(decode_kernels()[index], ordinal, major, state);
  if (error != cudaSuccess || !state.clusters.load(std::memory_order_relaxed)) return error;
  device->wide_ring_clusters = state.wide.load(std::memory_order_relaxed);
  return shared_per_multiprocessor(ordinal, &device->ring_shared);
}

}  // namespace

cudaError_t plan_decode(const DecodeShape& shape, int64_t workspace_bytes, DecodeConfig* config) {
  int ordinal = 0, major = 0;
  DecodeDevice device;
  cudaError_t error = cudaGetDevice(&ordinal);
  if (error == cudaSuccess) error = multiprocessor_count(ordinal, &device.sms);
  if (error == cudaSuccess) error = compute_major(ordinal, &major);
  if (error != cudaSuccess) return error;
  if (ordinal >= kMaxDevices) return cudaErrorInvalidDevice;

  *config = choose_layout(shape);
  const int index = find_kernel(shape.dtype, *config);
  if (index < 0 || index >= kMaxKernels) return cudaErrorInvalidValue;
  const DecodeKernel& kernel = decode_kernels()[index];
  KernelState& state = g_states[ordinal][index];
  error = prepare(kernel, ordinal, major, state);
  if (error == cudaSuccess) error = occupancy(kernel, *config, state, &device.ctas_per_sm);
  if (error == cudaSuccess) error = describe_rings(shape, *config, ordinal, major, &device);
  if (error != cudaSuccess) return error;
  device.pairs = state.pairs.load(std::memory_order_relaxed);
  device.wide_clusters = state.wide.load(std::memory_order_relaxed);
  choose_schedule(shape, device, workspace_bytes / partial_bytes(shape, *config), *config);
  return cudaSuccess;
}

cudaError_t launch_decode(const DecodeShape& shape, const DecodeConfig& config,
                          const DecodeParams& params, cudaStream_t stream) {
  int ordinal = 0;
  if (cudaError_t error = cudaGetDevice(&ordinal); error != cudaSuccess) return error;
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t launch =
      launch_config(config, config.ctas, config.cluster ? config.splits : 1, &attribute, stream);
  const int index = find_kernel(shape.dtype, config);
  const cudaError_t error = decode_kernels()[index].launch(launch, params);
  if (error != cudaSuccess || config.partial_slots == 0) return error;
  const bool early = g_states[ordinal][index].clusters.load(std::memory_order_relaxed);
  return launch_combine(shape.dtype, config.dim_tile, params, early, stream);
}

}  // namespace jax_baracuda
