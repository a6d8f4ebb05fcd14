// What the stages of a computing warpgroup share: the problem, its places in the buffers, and which thread has which rows of the
// tile, of the sequence and of the output. The stages are consumer_weights.cuh, consumer_output.cuh and consumer.cuh.
#pragma once

#include "attention/forward/softmax.cuh"
#include "attention/hopper/epilogue.cuh"
#include "attention/hopper/params.h"
#include "attention/hopper/traits.cuh"
#include "device/divide.cuh"

namespace jax_baracuda {

template <class Traits>
struct ConsumerBase {
  using Query = typename Traits::Query;
  using Key = typename Traits::Key;
  using Value = typename Traits::Value;

  const HopperForwardParams& all;
  const ForwardParams& p;
  typename Traits::Control& control;
  const int group;  // of this warpgroup, the same register for a warp
  // A row's maximum moves when a score is more than 2^kTolerated times larger.
  static constexpr float kTolerated = 8.0f;
  const float scale;  // of what the softmax gets, to base 2
  const float room;   // of a score above its row's maximum, in which that does not move for certain

  const uint64_t queries, keys, values;  // descriptors
  const uint32_t staging;                // of the first warp
  const uint32_t bias;
  RingPlace<Traits::kStages> key_place, value_place;
  RingPlace<Traits::kQueryStages> query_place;
  RingPlace<1> bias_place;  // of float32
  int tile_slot = 0;

  __device__ __forceinline__ ConsumerBase(const HopperForwardParams& params,
                                          typename Traits::Control& control, uint32_t shared,
                                          int group)
      : all(params),
        p(params.problem),
        control(control),
        group(group),
        scale(scale_of(params)),
        room(fminf(0.999f * kTolerated / scale, 1e30f)),
        queries(Query::descriptor(shared + Query::row_offset(64 * group))),
        keys(Key::descriptor(shared + Traits::kKeyOffset)),
        values(Value::descriptor(shared + Traits::kValueOffset)),
        staging(shared + Traits::kStagingOffset),
        bias(shared + Traits::kBiasOffset) {}

  // Of scores; of hyperbolic tangents; of logits that are in base 2 already.
  static __device__ __forceinline__ float scale_of(const HopperForwardParams& all) {
    const ForwardParams& p = all.problem;
    if constexpr (Traits::kAnything || Traits::kBounded) return 1.0f;
    return (Traits::kFeatures == kSoftCap ? p.soft_cap : p.scale) * kLog2E;
  }

  // Where this thread is: read anew where it is seldom needed, so that it takes no register in between.
  struct Place {
    int lane, warp_row;  // warp_row: first row of the warp within the tile
    // The lane's two rows.
    __device__ __forceinline__ int row(int half) const {
      return warp_row + score_row(0, 2 * half, lane);
    }
  };
  __device__ __forceinline__ Place place() const {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(thread));
    return {thread % 32, (thread - 128) / 32 * 16};
  }

  // The row of the sequence that one of this lane's two rows of the tile is. In a packed tile, rows of the same place in
  // the sequence follow each other, head after head.
  __device__ __forceinline__ int row_of(const QueryTile& tile, const Place& at, int half) const {
    if constexpr (Traits::kPacked)
      return tile.first_row + static_cast<int>(divide(at.row(half), all.few.packed));
    return tile.first_row + at.row(half);
  }

  // Where in the output one of this lane's two rows is.
  __device__ __forceinline__ OutputRow output_row(const QueryTile& tile, const Place& at,
                                                  int half) const {
    const int row = row_of(tile, at, half);
    const bool there = row < tile.sequence.q_rows;
    if constexpr (Traits::kPacked) {
      const int in_tile = row - tile.first_row;
      const int head = at.row(half) - in_tile * static_cast<int>(all.few.packed.divisor);
      return {row, tile.head + head, there && in_tile < all.few.rows};
    }
    return {row, tile.head, there};
  }
};

}  // namespace jax_baracuda
