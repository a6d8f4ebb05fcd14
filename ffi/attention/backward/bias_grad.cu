// The gradient of the bias: each CTA computes a tile of it anew from Q, K, V and dO, summed over
// the dimensions that the bias repeats, in one order and without atomics.
#include "attention/backward/bias_part.cuh"
#include "attention/backward/launch.h"
#include "attention/element.cuh"
#include "attention/score.cuh"
#include "attention/segments.h"
#include "attention/sequence.cuh"
#include "device/fragment.cuh"
#include "device/memory.cuh"
#include "device/product.cuh"

namespace jax_baracuda {
namespace {

constexpr int kSide = 64;  // rows, keys and head columns of a step
constexpr int kThreads = 128, kRowWarps = 2;
constexpr int kWarpRows = 32, kWarpKeys = 32;
using Block = Accumulator<kWarpRows / 16, kWarpKeys / 8>;

// Shared memory: two stages of a tile of rows (Q or dO) and one of keys (K or V).
template <class T>
using Side = Tile<T, kSide, kSide>;
template <class T>
constexpr int kSharedBytes = 4 * Side<T>::kBytes;

// What a warp of the CTA computes of its part.
struct BiasTile : BiasPart {
  int key_warp, row_warp;
};

__device__ __forceinline__ BiasTile find_tile(const BiasGradParams& p) {
  const int warp = threadIdx.x / 32;
  return {find_bias_part<kSide>(p), warp / kRowWarps * kWarpKeys, warp % kRowWarps * kWarpRows};
}

// s = Q K^T, d = dO V^T of rows from i0 and keys from j0, over pieces of the head dims.
template <class T>
__device__ __forceinline__ void multiply_rows_keys(const BiasGradParams& p,
                                                   const Sequence& sequence, int head, int i0,
                                                   int j0, const BiasTile& tile, uint32_t shared,
                                                   Block& s, Block& d) {
  using M = Mma<T>;
  const int lane = threadIdx.x % 32;
  const int pieces = (p.dim + kSide - 1) / kSide;
  const int all = pieces + (p.dim_v + kSide - 1) / kSide;
  const int64_t q_row = sequence.q_first * p.heads + head;
  const int64_t k_row = sequence.k_first * p.kv_heads + head / p.group;
  const auto rows_tile = [&](int piece) {
    return Side<T>(shared + piece % 2 * 2 * Side<T>::kBytes);
  };
  const auto keys_tile = [&](int piece) {
    return Side<T>(shared + (piece % 2 * 2 + 1) * Side<T>::kBytes);
  };
  const auto load = [&](int piece) {
    const bool query = piece < pieces;
    const int dim = query ? p.dim : p.dim_v;
    const int column = (query ? piece : piece - pieces) * kSide;
    const bool vector = (query ? p.vector_q : p.vector_v) != 0;
    const T* rows = static_cast<const T*>(query ? p.query : p.dout) + q_row * dim + column;
    const T* keys = static_cast<const T*>(query ? p.key : p.value) + k_row * dim + column;
    const GlobalRows<T> from_rows = {rows, static_cast<int64_t>(p.heads) * dim, sequence.q_len,
                                     dim - column, vector};
    const GlobalRows<T> from_keys = {keys, static_cast<int64_t>(p.kv_heads) * dim, sequence.kv_len,
                                     dim - column, vector};
    load_tile<kThreads>(rows_tile(piece), from_rows, i0, threadIdx.x);
    load_tile<kThreads>(keys_tile(piece), from_keys, j0, threadIdx.x);
    copy_async_commit();
  };
  clear(s);
  clear(d);
  load(0);
#pragma unroll 1
  for (int piece = 0; piece < all; ++piece) {
    copy_async_wait<0>();
    __syncthreads();  // the piece is there, and all warps have done with the one before
    if (piece + 1 < all) load(piece + 1);
    const Side<T> rows = rows_tile(piece), keys = keys_tile(piece);
    const auto load_a = [&](int m, int k) { return M::load_a(rows, tile.row_warp + m, k, lane); };
    const auto load_b = [&](int n, int k) { return M::load_b(keys, tile.key_warp + n, k, lane); };
    if (piece < pieces)
      multiply_add<T, kSide>(s, load_a, load_b);
    else
      multiply_add<T, kSide>(d, load_a, load_b);
  }
  __syncthreads();  // the next step loads its first piece
}

// Adds the gradients of the logits of a warp's block, rows from i0 and keys from j0.
__device__ __forceinline__ void add_gradients(Block& total, const Block& s, const Block& d,
                                              const BiasGradParams& p, const Sequence& sequence,
                                              int head, const Visibility& visible,
                                              const Segments& segments, int i0, int j0) {
  const int lane = threadIdx.x % 32;
  const ScoreModifier modify(p, sequence, head);
  const int64_t pack_row = sequence.q_first - static_cast<int64_t>(sequence.pack) * p.q_rows;
  const int64_t stats =
      (static_cast<int64_t>(sequence.pack) * p.heads + head) * p.q_rows + pack_row;
#pragma unroll
  for (int m = 0; m < kWarpRows / 16; ++m) {
    Visibility::Keys keys[2];
    float lse[2], delta[2];
    int segment[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = i0 + 16 * m + 8 * half + lane / 4;
      const bool counts = i < visible.q_len;
      keys[half] = visible.keys_of_rows(i, i + 1);
      lse[half] = counts ? p.lse[stats + i] * kLog2E : 0.0f;
      delta[half] = counts ? p.delta[stats + i] : 0.0f;
      segment[half] = counts && segments.any() ? segments.q[i] : 0;
      if (lse[half] == negative_infinity()) keys[half] = {0, 0, 0};  // sees no key, after all
    }
#pragma unroll
    for (int n = 0; n < kWarpKeys / 8; n += 2) {
      uint32_t words[4];
      if (p.dropout_seed) {
        const uint4 w = modify.dropout_words(i0 + 16 * m + lane / 4, j0 + 8 * n + 2 * (lane % 4));
        words[0] = w.x, words[1] = w.y, words[2] = w.z, words[3] = w.w;
      }
#pragma unroll
      for (int b = 0; b < 2; ++b)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int half = e >> 1, column = e & 1;
          const int i = i0 + 16 * m + 8 * half + lane / 4;
          const int j = j0 + 8 * (n + b) + 2 * (lane % 4) + column;
          const bool in_window = keys[half].begin <= j && j < keys[half].end;
          if (!in_window && j >= keys[half].sink_end) continue;
          if (segments.any() && segments.k[j] != segment[half]) continue;
          const float probability = exp2_approx(modify(s[m][n + b][e], i, j) - lse[half]);
          float keep = p.dropout_scale;
          if (p.dropout_seed) {
            const uint32_t word = words[2 * half + b];
            if (column ? modify.drops_high(word) : modify.drops_low(word)) keep = 0.0f;
          }
          total[m][n + b][e] += probability * (keep * d[m][n + b][e] - delta[half]);
        }
    }
  }
}

// Sums over rows of the block, all warps, in `sums`; then row 0 is the only one.
__device__ __forceinline__ void store_row_sums(const BiasGradParams& p, const BiasTile& tile,
                                               const Block& total, int64_t start,
                                               float (&sums)[kRowWarps][kSide]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < kWarpKeys / 8; ++n)
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      float sum = 0.0f;
#pragma unroll
      for (int m = 0; m < kWarpRows / 16; ++m) sum += total[m][n][column] + total[m][n][column + 2];
      sum = butterfly_sum<4, 16>(sum);
      if (lane < 4)
        sums[tile.row_warp / kWarpRows][tile.key_warp + 8 * n + 2 * lane + column] = sum;
    }
  __syncthreads();
  const int key = threadIdx.x;
  if (key < kSide && tile.key + key < p.bias_keys)
    store_bias(p, start + tile.key + key, sums[0][key] + sums[1][key]);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    bias_grad_kernel(const __grid_constant__ BiasGradParams p) {
  extern __shared__ __align__(128) unsigned char shared_memory[];
  __shared__ float sums[kRowWarps][kSide];
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory));
  const BiasTile tile = find_tile(p);
  const bool all_rows = p.bias.row_stride == 0;
  const int sequences = p.packs * p.sequences;
  Block total;
  clear(total);
  for (int index = max(tile.sequence, 0);
       index < (tile.sequence < 0 ? sequences : tile.sequence + 1); ++index) {
    const Sequence sequence = find_sequence(p, index);
    const Visibility visible(p, sequence);
    const Segments segments(p, sequence);
    const Visibility::Rows rows = visible.rows_of_keys(tile.key, tile.key + kSide);
    const int begin = all_rows ? rows.begin / kSide * kSide : tile.row;
    const int end = all_rows ? rows.end : min(rows.end, tile.row + kSide);
    for (int head = max(tile.head, 0); head < (tile.head < 0 ? p.heads : tile.head + 1); ++head)
      for (int i0 = begin; i0 < end; i0 += kSide) {
        if (i0 + kSide <= rows.begin ||
            segments.overlap(i0, min(i0 + kSide, sequence.q_rows), tile.key,
                             min(tile.key + kSide, sequence.k_rows)) == Overlap::kNone)
          continue;
        Block s, d;
        multiply_rows_keys<T>(p, sequence, head, i0, tile.key, tile, shared, s, d);
        add_gradients(total, s, d, p, sequence, head, visible, segments, i0 + tile.row_warp,
                      tile.key + tile.key_warp);
      }
  }
  const int64_t start = bias_start(p, tile);
  if (all_rows) {
    store_row_sums(p, tile, total, start, sums);
    return;
  }
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < kWarpRows / 16; ++m)
#pragma unroll
    for (int n = 0; n < kWarpKeys / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = tile.row + tile.row_warp + 16 * m + 8 * (e >> 1) + lane / 4;
        const int key = tile.key + tile.key_warp + 8 * n + 2 * (lane % 4) + (e & 1);
        if (row < p.bias_rows && key < p.bias_keys)
          store_bias(p, start + row * p.bias.row_stride + key, total[m][n][e]);
      }
}

// Adds up terms of 32 keys, one a sequence and head: those of one number in kSumParts by the same threads.
constexpr int kSumKeys = 32, kSumParts = 8;
__global__ void __launch_bounds__(kSumKeys* kSumParts)
    bias_sums_kernel(const __grid_constant__ BiasGradParams p, const float* sums) {
  __shared__ float of_part[kSumParts][kSumKeys];
  const int part = threadIdx.x / kSumKeys, lane = threadIdx.x % kSumKeys;
  const bool all_heads = p.bias.head_stride == 0, all_sequences = p.bias.sequence_stride == 0;
  const int blocks = (p.bias_keys + kSumKeys - 1) / kSumKeys, index = blockIdx.x / blocks;
  const int key = blockIdx.x % blocks * kSumKeys + lane;
  const int own_head = all_heads ? 0 : index % p.heads;
  const int own_sequence = all_sequences ? 0 : index / (all_heads ? 1 : p.heads);
  const int heads = all_heads ? p.heads : 1;
  const int terms = heads * (all_sequences ? p.packs * p.sequences : 1);
  float sum = 0.0f;
  for (int term = part; term < terms; term += kSumParts) {
    const int head = all_heads ? term % heads : own_head;
    const Sequence s = find_sequence(p, all_sequences ? term / heads : own_sequence);
    const int64_t of_head = (static_cast<int64_t>(s.pack) * p.heads + head) * p.k_rows;
    const int64_t begin = s.k_first - static_cast<int64_t>(s.pack) * p.k_rows;
    if (key < s.kv_len) sum += sums[of_head + begin + key];
  }
  of_part[part][lane] = sum;
  __syncthreads();
  if (part > 0 || key >= p.bias_keys) return;
  for (int i = 1; i < kSumParts; ++i) sum += of_part[i][lane];
  store_bias(p, own_sequence * p.bias.sequence_stride + own_head * p.bias.head_stride + key, sum);
}

template <class T>
cudaError_t prepare() {
  return cudaFuncSetAttribute(bias_grad_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kSharedBytes<T>);
}

template <class T>
cudaError_t launch(const BiasGradParams& p, unsigned ctas, cudaStream_t stream) {
  bias_grad_kernel<T><<<ctas, kThreads, kSharedBytes<T>, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t plan_attention_bias_grad(DType dtype, const BiasGradParams& p) {
  const HopperBiasGradient* hopper = nullptr;
  if (cudaError_t error = plan_hopper_bias_gradient(dtype, p, &hopper);
      error != cudaSuccess || hopper)
    return error;
  return dtype == DType::kF16    ? prepare<__half>()
         : dtype == DType::kBF16 ? prepare<__nv_bfloat16>()
                                 : prepare<float>();
}

cudaError_t launch_attention_bias_grad(DType dtype, BiasGradParams p, void* workspace,
                                       cudaStream_t stream) {
  const HopperBiasGradient* hopper = nullptr;
  if (cudaError_t error = plan_hopper_bias_gradient(dtype, p, &hopper); error != cudaSuccess)
    return error;
  const auto ctas = static_cast<unsigned>(bias_parts(p, hopper ? hopper->side : kSide));
  if (ctas == 0) return cudaSuccess;
  if (hopper) return launch_hopper_bias_gradient(*hopper, p, ctas, stream);
  if (cudaError_t error = launch_segment_ranges(&p, workspace, stream); error != cudaSuccess)
    return error;
  return dtype == DType::kF16    ? launch<__half>(p, ctas, stream)
         : dtype == DType::kBF16 ? launch<__nv_bfloat16>(p, ctas, stream)
                                 : launch<float>(p, ctas, stream);
}

cudaError_t launch_bias_sums(const BiasGradParams& p, const float* sums, cudaStream_t stream) {
  int64_t ctas = (p.bias_keys + kSumKeys - 1) / kSumKeys;
  if (p.bias.head_stride != 0) ctas *= p.heads;
  if (p.bias.sequence_stride != 0) ctas *= int64_t{p.packs} * p.sequences;
  if (ctas == 0) return cudaSuccess;
  bias_sums_kernel<<<static_cast<unsigned>(ctas), kSumKeys * kSumParts, 0, stream>>>(p, sums);
  return cudaGetLastError();
}

}  // namespace jax_baracuda
