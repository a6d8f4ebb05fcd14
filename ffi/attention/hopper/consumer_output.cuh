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
  static constexpr int kDimV = Traits::kDimV;

  __device__ __forceinline__ void finish(int slot, OnlineSoftmax<1>& softmax,
                                         float (&factor)[2]) const {
    const auto& tile = control.tile[slot];
    const Sequence& sequence = tile.sequence;
    const Place at = place();
    const auto row_at = [&](int half) { return output_row(tile, at, half); };
    const float* sinks = p.sinks ? p.sinks + sequence.index * p.sinks_stride : nullptr;
    const auto lse_at = [&](const OutputRow& r) {
      const int64_t row = sequence.q_first - static_cast<int64_t>(sequence.pack) * p.q_rows + r.row;
      return lse_of(p, sequence.pack, r.head, row);
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
  __device__ __forceinline__ void store(int slot, const float (&out)[kDimV / 8][4],
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
    if constexpr (Traits::kStaged) {
      const int row = tile.first_row + at.warp_row;
      T* to = static_cast<T*>(p.out) + output_at(p, tile.sequence, {row, tile.head, true});
      store_rows_staged<T, kDimV>(staging + at.warp_row / 16 * Traits::kStagedBytes, to,
                                  int64_t{p.heads} * p.dim_v, tile.sequence.q_rows - row, p.dim_v,
                                  out, factor, at.lane);
      return;
    }
    store_rows<T, kDimV>(p, tile.sequence, row_at, out, factor, at.lane);
  }
};

}  // namespace jax_baracuda
