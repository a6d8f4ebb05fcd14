// Instantiations and launch of the row kernel.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cache/config.h"
#include "cache/kernel.cuh"
#include "cache/launch.h"
#include "common/device_info.h"

namespace jax_baracuda {
namespace {

using Kernel = void (*)(RowParams);

template <class T, int kPiece>
Kernel rotating_kernel(bool interleaved) {
  return interleaved ? row_kernel<T, kPiece, Pairs::kNeighbours, kRowThreads, kRowBatch>
                     : row_kernel<T, kPiece, Pairs::kHalves, kRowThreads, kRowBatch>;
}

template <class T>
Kernel rotating_kernel(const RowPlan& plan) {
  constexpr int kVector = 16 / sizeof(T);
  return plan.vector ? rotating_kernel<T, kVector>(plan.interleaved)
                     : rotating_kernel<T, 1>(plan.interleaved);
}

// A copy knows its elements by their size alone.
template <class Bits>
Kernel copying_kernel(bool vector) {
  return vector ? row_kernel<Bits, 16 / sizeof(Bits), Pairs::kNone, kRowThreads, kRowBatch>
                : row_kernel<Bits, 1, Pairs::kNone, kRowThreads, kRowBatch>;
}

Kernel kernel_of(const RowPlan& plan) {
  if (!plan.rotated)
    return plan.dtype == DType::kF32 ? copying_kernel<uint32_t>(plan.vector)
                                     : copying_kernel<uint16_t>(plan.vector);
  switch (plan.dtype) {
    case DType::kF16:
      return rotating_kernel<__half>(plan);
    case DType::kBF16:
      return rotating_kernel<__nv_bfloat16>(plan);
    default:
      return rotating_kernel<float>(plan);
  }
}

}  // namespace

cudaError_t prepare_rows(RowPlan plan) {
  int device = 0, most_shared = 0;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (cudaError_t error = max_shared_per_block(device, &most_shared); error != cudaSuccess)
    return error;
  for (const bool vector : {false, true}) {  // which one is known when the addresses are
    plan.vector = vector;
    const cudaError_t error = cudaFuncSetAttribute(  // that loads the kernel's module
        reinterpret_cast<const void*>(kernel_of(plan)), cudaFuncAttributeMaxDynamicSharedMemorySize,
        most_shared);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t launch_rows(const RowPlan& plan, RowParams params, cudaStream_t stream) {
  int device = 0, sms = 0;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (cudaError_t error = multiprocessor_count(device, &sms); error != cudaSuccess) return error;
  if (params.tokens == 0) return cudaSuccess;
  const int64_t ctas = choose_row_layout(plan, sms, &params);
  if (ctas == 0) return cudaSuccess;
  kernel_of(plan)<<<static_cast<unsigned>(ctas), kRowThreads, params.shared_bytes, stream>>>(
      params);
  return cudaGetLastError();
}

}  // namespace jax_baracuda
