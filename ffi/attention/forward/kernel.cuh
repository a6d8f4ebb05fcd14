// The forward kernel (FlashAttention-2, T. Dao, 2023, arXiv:2307.08691): a CTA takes kM query rows of one head and
// goes over the keys they see, from the last block to the first.
#pragma once

#include <type_traits>

#include "attention/forward/config.h"
#include "attention/forward/epilogue.cuh"
#include "attention/forward/keys.cuh"
#include "attention/forward/softmax.cuh"
#include "attention/key_blocks.cuh"
#include "device/product.cuh"

namespace jax_baracuda {

template <class T_, int kDim_, int kDimV_, int kM_, int kN_, int kWarps_, int kCtas_,
          bool kFeatures_, bool kPaged_>
struct ForwardTraits {
  using T = T_;
  static constexpr int kDim = kDim_, kDimV = kDimV_, kM = kM_, kN = kN_, kWarps = kWarps_;
  static constexpr int kCtas = kCtas_;           // on an SM, as far as registers go
  static constexpr bool kFeatures = kFeatures_;  // soft cap, ALiBi, bias, dropout
  static constexpr bool kPaged = kPaged_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRowTiles = kM / kWarps / 16;
  using Query = Tile<T, kM, kDim>;
  using Key = Tile<T, kN, kDim>;
  using Value = Tile<T, kN, kDimV>;
  using Out = Tile<T, kM, kDimV>;
  static constexpr int kQueryBytes = Query::kBytes > Out::kBytes ? Query::kBytes : Out::kBytes;
  static constexpr int kStageBytes = Key::kBytes + Value::kBytes;  // a block of keys and of values
  static constexpr int kSharedBytes = kQueryBytes + 2 * kStageBytes;
};

// The output and the LSE of this warp's rows, from registers.
template <class Traits>
__device__ __forceinline__ void store_output(
    const ForwardParams& p, const Sequence& sequence, OnlineSoftmax<Traits::kRowTiles>& softmax,
    const float (&out)[Traits::kRowTiles][Traits::kDimV / 8][4], float scale, int head, int i0,
    uint32_t shared) {
  using T = typename Traits::T;
  constexpr int kRowTiles = Traits::kRowTiles;
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16 * kRowTiles;
  const typename Traits::Out out_tile(shared);
  const float* sink = p.sinks ? p.sinks + sequence.index * p.sinks_stride + head : nullptr;
  const int rows = sequence.q_rows - i0;
  float* lse = lse_of(p, sequence.pack, head,
                      sequence.q_first + i0 - static_cast<int64_t>(sequence.pack) * p.q_rows);
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float row_lse;
      factor[half] = softmax.finish(r, half, scale, sink, &row_lse) *
                     (Traits::kFeatures ? p.dropout_scale : 1.0f);
      const int row = warp_row + score_row(r, 2 * half, lane);
      if (lane % 4 == 0 && row < rows) lse[row * p.lse_row_stride] = row_lse;
    }
#pragma unroll
    for (int c = 0; c < Traits::kDimV / 8; ++c) {
      const float scaled[4] = {out[r][c][0] * factor[0], out[r][c][1] * factor[0],
                               out[r][c][2] * factor[1], out[r][c][3] * factor[1]};
      Mma<T>::store(out_tile, warp_row + 16 * r, 8 * c, scaled, lane);
    }
  }
  __syncwarp();
  const int64_t out_stride = static_cast<int64_t>(p.heads) * p.dim_v;
  T* to = static_cast<T*>(p.out) + (sequence.q_first + i0 + warp_row) * out_stride +
          static_cast<int64_t>(head) * p.dim_v;
  store_rows<T>(out_tile, warp_row, to, out_stride, min(16 * kRowTiles, rows - warp_row), p.dim_v,
                !Traits::kFeatures || p.vector_v, lane);
}

// What a CTA knows of its rows. In shared memory: registers are for the products.
template <class Traits>
struct RowBlock {
  Sequence sequence;
  Visibility visible;
  SegmentBlocks segments;
  ScoreModifier modify;
};

template <class Traits>
__device__ __forceinline__ void attend_rows(const ForwardParams& p, const Sequence& sequence,
                                            int head, int i0, uint32_t shared) {
  using T = typename Traits::T;
  using M = Mma<T>;
  constexpr int kRowTiles = Traits::kRowTiles, kN = Traits::kN, kThreads = Traits::kThreads;
  const int thread = threadIdx.x, lane = thread % 32, warp_row = thread / 32 * 16 * kRowTiles;
  const int kv_head = head / p.group;

  __shared__ RowBlock<Traits> rows_of_cta;
  const Visibility& visible = rows_of_cta.visible;
  const SegmentBlocks& segments = rows_of_cta.segments;
  const ScoreModifier& modify = rows_of_cta.modify;
  const int64_t q_stride = static_cast<int64_t>(p.heads) * p.dim;
  const GlobalRows<T> q_rows = {static_cast<const T*>(p.query) + sequence.q_first * q_stride +
                                    static_cast<int64_t>(head) * p.dim,
                                q_stride, sequence.q_len, p.dim, p.vector_q != 0};
  using Keys = std::conditional_t<Traits::kPaged, PagedKeys<Traits>, ContiguousKeys<Traits>>;
  __shared__ typename Keys::Shared keys_of_cta;
  Keys keys(p, sequence, kv_head, keys_of_cta);
  // Every thread works its blocks out, so that the first loads need not wait for a barrier.
  const Visibility mask(p, sequence);
  const KeyBlocks<kN> blocks(mask, i0, i0 + Traits::kM);
  if (thread == 0) {
    rows_of_cta.sequence = sequence;
    rows_of_cta.visible = mask;
    rows_of_cta.segments = SegmentBlocks(Segments(p, sequence), mask, i0, i0 + Traits::kM);
    if constexpr (Traits::kFeatures) rows_of_cta.modify = ScoreModifier(p, sequence, head);
  }
  const bool has_segments = !Traits::kPaged && p.query_segments;
  int block = blocks.before(blocks.last);
  if (has_segments) {
    __syncthreads();
    block = segments.before(blocks, blocks.last);
  }

  const typename Traits::Query query(shared);
  // The buffer of this block; `stages` less it is the other one.
  uint32_t stage = shared + Traits::kQueryBytes;
  const uint32_t stages = 2 * stage + Traits::kStageBytes;
  auto before = [&](int at) {
    return has_segments ? segments.before(blocks, at) : blocks.before(at);
  };
  auto load_block = [&](uint32_t to, int first) {
    keys.load(to, first);
    copy_async_commit();
  };

  // Modified scores are logits in base 2 already.
  const float scale = Traits::kFeatures ? 1.0f : p.scale * kLog2E;
  OnlineSoftmax<kRowTiles> softmax;
  float out[kRowTiles][Traits::kDimV / 8][4] = {};

  if (block >= 0) {
    load_tile<kThreads, !Traits::kFeatures>(query, q_rows, i0, thread);
    if constexpr (Keys::kLooksAhead) {
      keys.prefetch(p, block * kN);
      keys.commit();
      keys.prefetch(p, max(before(block), 0) * kN);
      keys.commit();
      __syncthreads();
    }
    load_block(stage, block * kN);
  }
  while (block >= 0) {
    const int j0 = block * kN;
    const int next = before(block);
    copy_async_wait<0>();
    __syncthreads();  // this block is there, and all warps have done with the one before
    const typename Traits::Key key(stage);
    const typename Traits::Value value(stage + Traits::Key::kBytes);
    stage = stages - stage;
    if (next >= 0) {
      load_block(stage, next * kN);
      if constexpr (Keys::kLooksAhead) keys.prefetch(p, max(before(next), 0) * kN);
    }

    Scores<kRowTiles, kN> s;
    clear(s);
    multiply_add<T, Traits::kDim>(
        s, [&](int m, int k) { return M::load_a(query, warp_row + m, k, lane); },
        [&](int n, int k) { return M::load_b(key, n, k, lane); });

    const int i = i0 + warp_row;
    if (!blocks.whole(block)) hide_by_position<kRowTiles, kN>(s, visible, i, j0, lane);
    if (has_segments && segments.overlap<kN>(block) == Overlap::kSome)
      hide_by_segment<kRowTiles, kN>(s, segments.segments, visible.q_len, visible.kv_len, i, j0,
                                     lane);
    if constexpr (Traits::kFeatures) modify_scores<kRowTiles, kN>(s, p, modify, i, j0, lane);
    softmax.template update<kN>(s, out, scale);
    if constexpr (Traits::kFeatures)
      if (p.dropout_seed) drop_weights<kRowTiles, kN>(s, modify, i, j0, lane);
    multiply_add<T, kN, false>(
        out, [&](int m, int k) { return M::from_accumulator(s[m / 16], k); },
        [&](int n, int k) { return M::load_b_transposed(value, n, k, lane); });
    keys.commit();
    block = next;
  }

  __syncthreads();  // the tile of the output lies where query (and key) were
  store_output<Traits>(p, rows_of_cta.sequence, softmax, out, scale, head, i0, shared);
}

// CTAs: tiles of a head one after the other, those with the most keys under a causal mask first; then, for packed
// calls, one CTA a pack and head for the rows outside its sequences.
template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kCtas)
    attention_forward_kernel(const __grid_constant__ ForwardParams p, int tiles) {
  extern __shared__ __align__(128) unsigned char shared_memory[];
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory));
  const int row = blockIdx.x / tiles;
  const int head = row % p.heads, index = row / p.heads;
  if (index >= p.packs * p.sequences) {
    const int pack = index - p.packs * p.sequences;
    if (blockIdx.x % tiles != 0) return;
    const int32_t* cu = p.cu_seqlens_q + static_cast<int64_t>(pack) * (p.sequences + 1);
    const int begin = clamped(cu[0], 0, p.q_rows), end = clamped(cu[p.sequences], begin, p.q_rows);
    store_no_attention<typename Traits::T>(p, pack, head, 0, begin, threadIdx.x, blockDim.x);
    store_no_attention<typename Traits::T>(p, pack, head, end, p.q_rows, threadIdx.x, blockDim.x);
    return;
  }
  const Sequence sequence = find_sequence(p, index);
  for (int tile = tiles - 1 - blockIdx.x % tiles; tile * Traits::kM < sequence.q_rows;
       tile += tiles) {
    attend_rows<Traits>(p, sequence, head, tile * Traits::kM, shared);
    __syncthreads();  // before the next tile of a sequence longer than max_q takes the shared memory
  }
}

}  // namespace jax_baracuda
