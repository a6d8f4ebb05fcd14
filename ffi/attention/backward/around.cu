// Before the backward kernel: delta, the LSE in base 2, cleared sums. After it: dQ from its sum.
#include <algorithm>

#include "attention/backward/launch.h"
#include "attention/element.cuh"
#include "attention/sequence.cuh"
#include "device/math.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 8;  // of a row
constexpr int kRowsPerCta = kThreads / kLanes;

// This lane's share of the dot product of two rows.
template <class T>
__device__ float partial_dot(const T* a, const T* b, int cols, bool vector, int lane) {
  float sum = 0.0f;
  if (vector) {
    constexpr int kPiece = 16 / sizeof(T);
    for (int col = lane * kPiece; col < cols; col += kLanes * kPiece) {
      const uint4 x = load_global_16(a + col), y = load_global_16(b + col);
#pragma unroll
      for (int i = 0; i < kPiece; ++i)
        sum += static_cast<float>(reinterpret_cast<const T*>(&x)[i]) *
               static_cast<float>(reinterpret_cast<const T*>(&y)[i]);
    }
    return sum;
  }
  for (int col = lane; col < cols; col += kLanes)
    sum += static_cast<float>(a[col]) * static_cast<float>(b[col]);
  return sum;
}

// Zeros to rows of keys or values that belong to no sequence, all CTAs together.
template <class T>
__device__ void clear_unowned(const BackwardParams& p, T* rows, int64_t width) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int pack = 0; pack < p.packs; ++pack) {
    const int32_t* cu = p.cu_seqlens_k + static_cast<int64_t>(pack) * (p.sequences + 1);
    const int begin = clamped(cu[0], 0, p.k_rows), end = clamped(cu[p.sequences], begin, p.k_rows);
    T* of_pack = rows + static_cast<int64_t>(pack) * p.k_rows * width;
    for (int64_t i = thread; i < begin * width; i += threads) of_pack[i] = T(0.0f);
    for (int64_t i = end * width + thread; i < p.k_rows * width; i += threads) of_pack[i] = T(0.0f);
  }
}

// CTAs: blocks of rows of a (pack, head) one after the other. A row whose LSE is -inf counts for
// nothing, and what out, dout and dlse hold there is not looked at.
template <class T>
__global__ void __launch_bounds__(kThreads)
    preprocess_kernel(const __grid_constant__ BackwardParams p, int blocks, int turns) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t i = thread; i < turns; i += static_cast<int64_t>(gridDim.x) * kThreads)
    p.turns[i] = 0;
  if (thread == 0) *p.tickets = 0;
  if (p.cu_seqlens_k) {
    clear_unowned(p, static_cast<T*>(p.dk), static_cast<int64_t>(p.kv_heads) * p.dim);
    clear_unowned(p, static_cast<T*>(p.dv), static_cast<int64_t>(p.kv_heads) * p.dim_v);
  }
  const int lane = threadIdx.x % kLanes;
  const int pack_head = blockIdx.x / blocks;
  const int row = blockIdx.x % blocks * kRowsPerCta + threadIdx.x / kLanes;
  const bool valid = row < p.q_rows;
  const int64_t stat = static_cast<int64_t>(pack_head) * p.q_rows + row;
  const int pack = pack_head / p.heads, head = pack_head % p.heads;
  const int64_t at = (static_cast<int64_t>(pack) * p.q_rows + row) * p.heads + head;
  const float lse = valid ? p.lse[stat] : negative_infinity();
  const bool counts = lse != negative_infinity();
  float dot = 0.0f;
  if (counts)
    dot = partial_dot(static_cast<const T*>(p.out) + at * p.dim_v,
                      static_cast<const T*>(p.dout) + at * p.dim_v, p.dim_v, p.vector_v != 0, lane);
  dot = butterfly_sum<1, kLanes / 2>(dot);
  if (!valid) return;
  if (lane == 0) {
    p.delta[stat] = counts ? dot - (p.dlse ? p.dlse[stat] : 0.0f) : 0.0f;
    p.lse2[stat] = counts ? lse * kLog2E : -negative_infinity();
  }
  float4* sum = reinterpret_cast<float4*>(p.dq_sum + at * p.dq_width);
  for (int i = lane; i < p.dq_width / 4; i += kLanes) sum[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// A thread has four columns that lie together in the sum: 2t, 2t + 1, 8 + 2t, 9 + 2t of 16. It
// trades two of them with its neighbour for four columns that lie together in dQ.
template <class T>
__global__ void __launch_bounds__(kThreads)
    postprocess_kernel(const __grid_constant__ BackwardParams p, int64_t rows) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerCta + threadIdx.x / kLanes;
  const bool valid = row < rows;
  const int t = threadIdx.x % 4;
  const bool odd = t % 2 != 0;
  const float4* sums = reinterpret_cast<const float4*>(p.dq_sum + row * p.dq_width);
  T* to = static_cast<T*>(p.dq) + row * p.dim;
#pragma unroll 4
  for (int quad = threadIdx.x % kLanes; quad < p.dq_width / 4; quad += kLanes) {
    const float4 sum = valid ? sums[quad] : make_float4(0, 0, 0, 0);
    const float first = __shfl_xor_sync(0xffffffffu, odd ? sum.x : sum.z, 1);
    const float second = __shfl_xor_sync(0xffffffffu, odd ? sum.y : sum.w, 1);
    // Even lanes: columns 2t .. 2t + 3; odd ones: 8 + 2(t - 1) .. 8 + 2t + 1.
    const int column = quad / 4 * 16 + (odd ? 8 + 2 * (t - 1) : 2 * t);
    const float values[4] = {odd ? first : sum.x, odd ? second : sum.y, odd ? sum.z : first,
                             odd ? sum.w : second};
    if (!valid) continue;
    if (p.vector_q && column < p.dim) {
      alignas(16) T out[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = from_float<T>(values[i] * p.scale);
      if constexpr (sizeof(T) == 4)
        *reinterpret_cast<uint4*>(to + column) = *reinterpret_cast<const uint4*>(out);
      else
        *reinterpret_cast<uint2*>(to + column) = *reinterpret_cast<const uint2*>(out);
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (column + i < p.dim) to[column + i] = from_float<T>(values[i] * p.scale);
  }
}

// Calls f with a value of the CUDA type.
template <class F>
auto with_type(DType dtype, F f) {
  return dtype == DType::kF16    ? f(__half())
         : dtype == DType::kBF16 ? f(__nv_bfloat16())
                                 : f(float());
}

}  // namespace

cudaError_t prepare_around_backward(DType dtype) {
  return with_type(dtype, [](auto type) {
    cudaFuncAttributes attributes;  // asking for them loads the kernel's module
    const cudaError_t error = cudaFuncGetAttributes(&attributes, preprocess_kernel<decltype(type)>);
    return error != cudaSuccess
               ? error
               : cudaFuncGetAttributes(&attributes, postprocess_kernel<decltype(type)>);
  });
}

cudaError_t launch_preprocess(DType dtype, const BackwardParams& p, cudaStream_t stream) {
  const int blocks = std::max((p.q_rows + kRowsPerCta - 1) / kRowsPerCta, 1);
  const auto ctas = static_cast<unsigned>(int64_t{p.packs} * p.heads * blocks);
  if (ctas == 0) return cudaSuccess;
  const int turns = p.deterministic ? p.packs * p.heads * p.turn_count : 0;
  return with_type(dtype, [&](auto type) {
    preprocess_kernel<decltype(type)><<<ctas, kThreads, 0, stream>>>(p, blocks, turns);
    return cudaGetLastError();
  });
}

cudaError_t launch_postprocess(DType dtype, const BackwardParams& p, cudaStream_t stream) {
  const int64_t rows = int64_t{p.packs} * p.q_rows * p.heads;
  if (rows == 0) return cudaSuccess;
  const auto ctas = static_cast<unsigned>((rows + kRowsPerCta - 1) / kRowsPerCta);
  return with_type(dtype, [&](auto type) {
    postprocess_kernel<decltype(type)><<<ctas, kThreads, 0, stream>>>(p, rows);
    return cudaGetLastError();
  });
}

}  // namespace jax_baracuda
