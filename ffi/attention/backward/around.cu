// Before the backward kernel: delta, the LSE in base 2, cleared sums. After it: dQ from its sum.
#include <algorithm>
#include <type_traits>

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

// Four columns of dQ, as far as there are so many.
template <class T>
__device__ __forceinline__ void store_scaled(const BackwardParams& p, T* row, int column, float x,
                                             float y, float z, float w) {
  const float values[4] = {x * p.scale, y * p.scale, z * p.scale, w * p.scale};
  alignas(16) T out[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = from_float<T>(values[i]);
  if (p.vector_q) {
    using Vector = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
    if (column < p.dim)
      *reinterpret_cast<Vector*>(row + column) = *reinterpret_cast<const Vector*>(out);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (column + i < p.dim) row[column + i] = out[i];
}

// Two neighbouring groups of four in the sum hold columns c, c + 1, c + 8, c + 9 and c + 2, c + 3,
// c + 10, c + 11.
template <class T>
__global__ void __launch_bounds__(kThreads)
    postprocess_kernel(const __grid_constant__ BackwardParams p, int64_t rows) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerCta + threadIdx.x / kLanes;
  if (row >= rows) return;
  const float4* sums = reinterpret_cast<const float4*>(p.dq_sum + row * p.dq_width);
  T* to = static_cast<T*>(p.dq) + row * p.dim;
#pragma unroll 2
  for (int pair = threadIdx.x % kLanes; pair < p.dq_width / 8; pair += kLanes) {
    const float4 a = sums[2 * pair], b = sums[2 * pair + 1];
    const int column = pair / 2 * 16 + pair % 2 * 4;
    store_scaled(p, to, column, a.x, a.y, b.x, b.y);
    store_scaled(p, to, column + 8, a.z, a.w, b.z, b.w);
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
