// The end of a tile of a computing warpgroup: what its rows are multiplied with, their LSE and their output.
#pragma once

#include "attention/hopper/consumer_weights.cuh"

namespace jax_baracuda {

template <class Traits>
struct ConsumerOutput : ConsumerWeights<Traits> {
  using Stage = ConsumerWeights<Traits>;
  using Stage::all, Stage::control, Stage::p, Stage::scale;
  using Stage::staging, Stage::output_row, Stage::place, Stage::ConsumerWeights;
  using typename Stage::Place, typename Stage::T;
  static constexpr int kDimV = Traits::kDimV, kStagedColumns = Traits::kStagedColumns;

  // The row of its pack where a sequence begins: less than 2^31, so the lower words are enough.
  __device__ __forceinline__ int first_row_of(const Sequence& sequence) const {
    return static_cast<int>(static_cast<uint32_t>(sequence.q_first) -
                            static_cast<uint32_t>(sequence.pack) * p.q_rows);
  }

  __device__ __forceinline__ void finish(int slot, OnlineSoftmax<1>& softmax,
                                         float (&factor)[2]) const {
    const auto& tile = control.tile[slot];
    const Sequence& sequence = tile.sequence;
    const Place at = place();
    const auto row_at = [&](int half) { return output_row(tile, at, half); };
    if constexpr (Traits::kBounded) softmax.maximum[0][0] = softmax.maximum[0][1] = 0.0f;
    const float* sinks = p.sinks ? p.sinks + sequence.index * p.sinks_stride : nullptr;
    float* const first_lse = lse_of(p, sequence.pack, tile.head, first_row_of(sequence));
    const auto lse_at = [&](const OutputRow& r) {
      float* row_lse = first_lse + r.row * p.lse_row_stride;
      return Traits::kPacked ? row_lse + (r.head - tile.head) * p.lse_head_stride : row_lse;
    };
    if constexpr (Traits::kFewTiles) {
      if (all.few.splits > 1) {  // sinks come in when the splits are added up
        const auto split_at = [&](const OutputRow& r) {
          return &split_lse(all, tile.split, sequence.q_first + r.row, r.head);
        };
        finish_rows(sequence, nullptr, softmax, scale, at.lane, row_at, split_at, factor);
        return;
      }
    }
    finish_rows(sequence, sinks, softmax, scale, at.lane, row_at, lse_at, factor);
    if constexpr (Traits::kFeatures & kDropout) {
      factor[0] *= p.dropout_scale;
      factor[1] *= p.dropout_scale;
    }
  }
  // Columns from `first` on.
  __device__ __forceinline__ void store_staged(const QueryTile& tile, const Place& at, int first,
                                               const float (&out)[kStagedColumns / 8][4],
                                               const float (&factor)[2]) const {
    const Sequence& sequence = tile.sequence;
    const uint32_t to = staging + at.warp_row / 16 * Traits::kStagedBytes;
    const int row = tile.first_row + at.warp_row, rows = sequence.q_rows - row;
    stage_rows<T, kStagedColumns>(to, out, factor, at.lane);
    // All lanes together: of a branch that they might not share, the compiler has the whole loop pay.
    if (__any_sync(0xffffffffu, p.cu_seqlens_q && rows < 16)) {
      store_staged_rows<T, kStagedColumns>(
          to, static_cast<T*>(p.out) + output_at(p, sequence, {row, tile.head, true}) + first,
          int64_t{p.heads} * p.dim_v, rows, p.dim_v - first, at.lane);
    } else {
      store_staged_rows<kStagedColumns>(to, all.out, first, first_row_of(sequence) + row, tile.head,
                                        sequence.pack);
    }
  }
  __device__ __forceinline__ void store(int slot, float (&out)[kDimV / 8][4],
                                        const float (&factor)[2]) const {
    const auto& tile = control.tile[slot];
    const Place at = place();
    const auto row_at = [&](int half) { return output_row(tile, at, half); };
    if constexpr (Traits::kFewTiles) {
      if (all.few.splits > 1) {
        const int64_t elements = int64_t{p.packs} * p.q_rows * p.heads * p.dim_v;
        store_split_rows<kDimV>(p, tile.sequence, all.few.out + tile.split * elements, row_at, out,
                                factor, at.lane);
        return;
      }
    }
    clear_unseen<kDimV>(out, factor);
    if constexpr (Traits::kStaged) {
#pragma unroll
      for (int first = 0; first < kDimV; first += kStagedColumns)
        store_staged(tile, at, first,
                     reinterpret_cast<const float (&)[kStagedColumns / 8][4]>(out[first / 8]),
                     factor);
      return;
    }
    store_rows<T, kDimV>(p, tile.sequence, row_at, out, factor, at.lane);
  }
};

}  // namespace jax_baracuda
