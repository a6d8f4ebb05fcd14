// Facts about the current device, read once per device and kept.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>

namespace jax_baracuda {

inline constexpr int kMaxDevices = 64;

// Caches one int attribute of each device. Two threads may both ask the driver; they store the same answer.
template <cudaDeviceAttr attribute>
cudaError_t device_attribute(int device, int* value) {
  static std::atomic<int> cache[kMaxDevices];  // 0: not asked yet; else the value plus one
  const bool cached = device < kMaxDevices;
  if (cached) {
    if (int stored = cache[device].load(std::memory_order_relaxed); stored != 0) {
      *value = stored - 1;
      return cudaSuccess;
    }
  }
  cudaError_t error = cudaDeviceGetAttribute(value, attribute, device);
  if (error == cudaSuccess && cached) cache[device].store(*value + 1, std::memory_order_relaxed);
  return error;
}

inline cudaError_t multiprocessor_count(int device, int* count) {
  return device_attribute<cudaDevAttrMultiProcessorCount>(device, count);
}

// Shared memory that one CTA may have, once its kernel has asked for it.
inline cudaError_t max_shared_per_block(int device, int* bytes) {
  return device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>(device, bytes);
}

inline cudaError_t shared_per_multiprocessor(int device, int* bytes) {
  return device_attribute<cudaDevAttrMaxSharedMemoryPerMultiprocessor>(device, bytes);
}

// Programmatic dependent launch and clusters exist from compute capability 9.0 on.
inline cudaError_t compute_major(int device, int* major) {
  return device_attribute<cudaDevAttrComputeCapabilityMajor>(device, major);
}

}  // namespace jax_baracuda
