// Before the Hopper backward kernel: statistics of the rows, cleared sums. After it: dQ from its sum.
//
// The sum of a row block has a part for each of the warps that add to it, one after the other: for every 8
// columns of the warp's 16 rows, the four values of each lane's accumulator.
#pragma once

#include "attention/hopper/backward/results.cuh"
#include "attention/hopper/backward/traits.cuh"
#include "device/math.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

inline constexpr int kAroundThreads = 256;

// What a CTA works on: a block of rows of a (sequence, head).
template <int kRows>
struct RowBlockPlace {
  Sequence sequence;
  int head, block;  // block: of the sequence
  int64_t rows;     // before the sequence's first row in [packs, Hq, q_rows]
  int64_t first;    // the sequence's first block in the workspace

  // CTAs: heads, then blocks, then sequences.
  __device__ __forceinline__ RowBlockPlace(const BackwardParams& p, int blocks)
      : sequence(find_sequence(p, blockIdx.x / p.heads / blocks)),
        head(blockIdx.x % p.heads),
        block(blockIdx.x / p.heads % blocks) {
    const int64_t begin = sequence.q_first - static_cast<int64_t>(sequence.pack) * p.q_rows;
    const int64_t pack_head = static_cast<int64_t>(sequence.pack) * p.heads + head;
    rows = pack_head * p.q_rows + begin;
    first = pack_head * p.turn_count +
            (p.cu_seqlens_q ? begin / kRows + sequence.index % p.sequences : 0);
  }
};

// Zeros to elements that belong to no sequence: [rows, width] a pack, all CTAs together.
template <class T>
__device__ void clear_outside(const BackwardParams& p, const int32_t* cu_seqlens, T* data, int rows,
                              int64_t width) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kAroundThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kAroundThreads;
  for (int pack = 0; pack < p.packs; ++pack) {
    const int32_t* cu = cu_seqlens + static_cast<int64_t>(pack) * (p.sequences + 1);
    const int begin = clamped(cu[0], 0, rows), end = clamped(cu[p.sequences], begin, rows);
    T* of_pack = data + static_cast<int64_t>(pack) * rows * width;
    for (int64_t i = thread; i < begin * width; i += threads) of_pack[i] = T(0.0f);
    for (int64_t i = end * width + thread; i < rows * width; i += threads) of_pack[i] = T(0.0f);
  }
}
template <class T>
__device__ void clear_all_outside(const BackwardParams& p) {
  const int64_t q_width = static_cast<int64_t>(p.heads) * p.dim;
  const int64_t k_width = static_cast<int64_t>(p.kv_heads) * p.dim;
  const int64_t v_width = static_cast<int64_t>(p.kv_heads) * p.dim_v;
  clear_outside(p, p.cu_seqlens_q, static_cast<T*>(p.dq), p.q_rows, q_width);
  clear_outside(p, p.cu_seqlens_k, static_cast<T*>(p.dk), p.k_rows, k_width);
  clear_outside(p, p.cu_seqlens_k, static_cast<T*>(p.dv), p.k_rows, v_width);
  // delta is [packs, Hq, q_rows]
  for (int pack_head = blockIdx.x; pack_head < p.packs * p.heads; pack_head += gridDim.x) {
    const int32_t* cu =
        p.cu_seqlens_q + static_cast<int64_t>(pack_head / p.heads) * (p.sequences + 1);
    const int begin = clamped(cu[0], 0, p.q_rows), end = clamped(cu[p.sequences], begin, p.q_rows);
    float* delta = p.delta + static_cast<int64_t>(pack_head) * p.q_rows;
    for (int i = threadIdx.x; i < p.q_rows; i += kAroundThreads)
      if (i < begin || i >= end) delta[i] = 0.0f;
  }
}

template <class T>
__device__ __forceinline__ float dot_of_pieces(const uint4& x, const uint4& y) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i)
    sum += static_cast<float>(reinterpret_cast<const T*>(&x)[i]) *
           static_cast<float>(reinterpret_cast<const T*>(&y)[i]);
  return sum;
}

// A row whose LSE is -inf counts for nothing, and what out, dout and dlse hold there is not looked at.
template <class Traits>
__global__ void __launch_bounds__(kAroundThreads)
    hopper_preprocess_kernel(const __grid_constant__ BackwardParams p, int blocks, int* counter,
                             int sum_blocks) {
  using T = typename Traits::T;
  constexpr int kRows = Traits::kRows, kDim = Traits::kDim, kDimV = Traits::kDimV;
  constexpr int kLanes = 8, kTurns = kRows / (kAroundThreads / kLanes);  // of a row, of the CTA
  constexpr int kPieces = (kDimV + 8 * kLanes - 1) / (8 * kLanes);
  if (blockIdx.x == 0 && threadIdx.x < 2) counter[threadIdx.x] = 0;
  if (p.cu_seqlens_q) clear_all_outside<T>(p);
  RowBlockPlace<kRows> place(p, blocks);
  const Sequence& s = place.sequence;
  const int lane = threadIdx.x % kLanes;
  for (; place.block * kRows < s.q_rows; place.block += blocks) {
    const int64_t block = place.first + place.block;
    uint4 out[kTurns][kPieces], dout[kTurns][kPieces];
    float lse[kTurns];
#pragma unroll
    for (int t = 0; t < kTurns; ++t) {
      const int row = place.block * kRows + t * (kAroundThreads / kLanes) + threadIdx.x / kLanes;
      lse[t] = row < s.q_rows ? p.lse[place.rows + row] : negative_infinity();
      const int64_t at = ((s.q_first + row) * p.heads + place.head) * p.dim_v;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int column = (i * kLanes + lane) * 8;
        const bool valid = row < s.q_rows && column < p.dim_v;
        out[t][i] = load_global_16_if(static_cast<const T*>(p.out) + at + column, valid);
        dout[t][i] = load_global_16_if(static_cast<const T*>(p.dout) + at + column, valid);
      }
    }
    float4* sum = reinterpret_cast<float4*>(p.dq_sum + block * (kRows * kDim));
    if (block < sum_blocks)
#pragma unroll
      for (int i = 0; i < kRows * kDim / 4 / kAroundThreads; ++i)
        sum[i * kAroundThreads + threadIdx.x] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int t = 0; t < kTurns; ++t) {
      float dot = 0.0f;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) dot += dot_of_pieces<T>(out[t][i], dout[t][i]);
      dot = butterfly_sum<1, kLanes / 2>(dot);
      if (lane != 0) continue;
      const int in_block = t * (kAroundThreads / kLanes) + threadIdx.x / kLanes;
      const int row = place.block * kRows + in_block;
      const bool counts = lse[t] != negative_infinity();
      const float delta = counts ? dot - (p.dlse ? p.dlse[place.rows + row] : 0.0f) : 0.0f;
      p.lse2[block * (2 * kRows) + in_block] = counts ? lse[t] * kLog2E : -negative_infinity();
      p.lse2[block * (2 * kRows) + kRows + in_block] = Traits::kBeginsWithDelta ? -delta
                                                       : Traits::kOption == kDropout
                                                           ? delta / p.dropout_scale
                                                           : delta;
      if (row < s.q_rows) p.delta[place.rows + row] = delta;
    }
    if (threadIdx.x < Traits::kCounters) p.turns[block * Traits::kCounters + threadIdx.x] = 0;
  }
}

template <class Traits>
__global__ void __launch_bounds__(kAroundThreads)
    hopper_postprocess_kernel(const __grid_constant__ BackwardParams p, int blocks) {
  using T = typename Traits::T;
  constexpr int kRows = Traits::kRows, kColumns = Traits::kQueryColumns;
  RowBlockPlace<kRows> place(p, blocks);
  const Sequence& s = place.sequence;
  const int part = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (part >= Traits::kQueryParts) return;
  const bool by_columns = Traits::kQueryColumns < Traits::kDim;
  const int first_row = part % 4 * 16 + (by_columns ? 0 : part / 4 * 64);
  const int first_column = by_columns ? part / 4 * kColumns : 0;
  for (; place.block * kRows < s.q_rows; place.block += blocks) {
    const float4* from = reinterpret_cast<const float4*>(
        p.dq_sum + (place.first + place.block) * (kRows * Traits::kDim) + part * 16 * kColumns);
    float d[kColumns / 2];
#pragma unroll
    for (int i = 0; i < kColumns / 8; ++i)
      *reinterpret_cast<float4*>(d + 4 * i) = __ldcs(from + i * 32 + lane);
    const int row = place.block * kRows + first_row;
    T* to =
        static_cast<T*>(p.dq) + ((s.q_first + row) * p.heads + place.head) * p.dim + first_column;
    store_rows_of_warp<T, kColumns>(to, static_cast<int64_t>(p.heads) * p.dim, s.q_rows - row,
                                    s.q_len - row, p.dim - first_column, d,
                                    gradient_scale<Traits>(p, p.scale), lane);
  }
}

}  // namespace jax_baracuda
