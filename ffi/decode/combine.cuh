// Merges the partial results of the rows that several CTAs share: one (row, query head) to a warp where
// rows are many and their parts few, else to a CTA.
//
// It is launched to start while the decode kernel drains, and its own time counts in full for a short
// problem: one round of loads in which statistics and partial outputs travel together, one barrier.
#pragma once

#include <cstdint>

#include "decode/config.h"
#include "decode/epilogue.cuh"
#include "decode/params.h"
#include "decode/schedule.cuh"
#include "device/math.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

inline constexpr int kCombineWarps = 8;

// The partial results of one row, in the order in which they are added.
struct Contributions {
  int b, query_head;
  int64_t query_row;
  int slot_head;
  Parts parts;  // count 0: the row has one owner, who has written its output

  __device__ Partial operator()(const DecodeParams& p, int i) const {
    return workspace_partial(p, parts.slot(i), slot_head);
  }
};

// The row that a CTA of the combine grid looks after. There are as many candidates as rows or, if that
// is less, as borders between the CTAs of the stream: only rows with a border inside were split.
__device__ inline Contributions find_contributions(const DecodeParams& p, unsigned candidate,
                                                   int head, bool by_border) {
  const unsigned rows = rows_per_request(p);
  Contributions c = {};
  unsigned b, row;
  if (by_border) {
    const int total = chunks_before(p, p.batch);
    const EvenCut cut = even_cut(total, min(p.ctas, total));
    const int border = cut.begin(candidate + 1);
    if (border >= total) return c;
    const Place place = find_position(p, border);
    const unsigned chunks = load_request(p, place.b).chunks;
    b = place.b;
    row = static_cast<unsigned>(border - place.line_begin) / chunks;
    // The row is the business of the first border inside it.
    const int row_begin = place.line_begin + row * chunks;
    if (border == row_begin || cut.begin(candidate) > row_begin) return c;
  } else {
    b = candidate / rows;
    row = candidate - b * rows;
  }
  const Request request = load_request(p, b);
  const Row place(p, b, row);
  if (head >= place.heads(p)) return c;
  c.b = b;
  c.query_head = place.query_head(p) + head;
  c.query_row = place.query_row(p) + head;
  c.slot_head = first_slot_head(p, place.head_block) + head;
  if (p.splits > 0) {
    c.parts = fixed_parts(p, place, request.chunks);
    return c;
  }
  const int total = chunks_before(p, p.batch);
  const EvenCut cut = even_cut(total, min(p.ctas, total));
  const int row_begin = chunks_before(p, b) + row * request.chunks;
  c.parts = stream_parts(cut, row_begin, request.chunks);
  if (c.parts.count == 1) c.parts.count = 0;
  return c;
}

// Sums of some of the parts, spread over a warp: lane l holds elements l, l + 32, ...
template <int kPerLane>
struct CombineState {
  float maximum = negative_infinity();
  float sum = 0.0f;
  float out[kPerLane] = {};
};

// Adds the parts first, first + step, ...: statistics and outputs of a batch are asked for together.
template <int kPerLane>
__device__ __forceinline__ void add_parts(const DecodeParams& p, const Contributions& parts,
                                          int first, int step, CombineState<kPerLane>& state) {
  constexpr int kBatch = 32 / kPerLane;
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (; first < parts.parts.count; first += kBatch * step) {
    float loaded[kBatch][kPerLane];
    float own_maximum[kBatch];
    float own_sum[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int part = first + i * step;
      const bool valid = part < parts.parts.count;
      const Partial from = parts(p, valid ? part : first);
      own_maximum[i] = valid ? __ldcg(from.stats) : negative_infinity();
      own_sum[i] = valid ? __ldcg(from.stats + 1) : 0.0f;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int d = j * 32 + lane;
        loaded[i][j] = valid && d < p.head_dim ? __ldcg(from.out + d) : 0.0f;
      }
    }
    float highest = state.maximum;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) highest = fmaxf(highest, own_maximum[i]);
    if (highest == negative_infinity()) continue;
    const float correction = exp2f(state.maximum - highest);
    state.maximum = highest;
    state.sum *= correction;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) state.out[j] *= correction;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float weight = exp2f(own_maximum[i] - highest);
      state.sum += weight * own_sum[i];
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) state.out[j] += weight * loaded[i][j];
    }
  }
}

template <class Element, int kPerLane>
__device__ __forceinline__ void write_row(const DecodeParams& p, const Contributions& parts,
                                          const CombineState<kPerLane>& state) {
  const int lane = threadIdx.x % 32;
  const Normalised n = normalise(p, state.maximum, state.sum, parts.b, parts.query_head);
  if (lane == 0) p.lse[parts.query_row] = n.lse;
  Element* out = static_cast<Element*>(p.out) + parts.query_row * p.head_dim;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int d = j * 32 + lane;
    if (d < p.head_dim) out[d] = from_float<Element>(state.out[j] * n.factor);
  }
}

template <class Element, int kDimTile>
__global__ void __launch_bounds__(kCombineWarps * 32)
    combine_kernel(const __grid_constant__ DecodeParams p, unsigned candidates, bool by_border,
                   bool by_warp) {
  constexpr int kPerLane = kDimTile / 32;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const unsigned unit = by_warp ? blockIdx.x * kCombineWarps + warp : blockIdx.x;
  const unsigned candidate = unit / static_cast<unsigned>(p.block_heads);
  const int head = unit - candidate * p.block_heads;
  if (p.if_even && nearly_even(p)) {  // nothing to add; but this grid must not end before the other
    if (blockIdx.x == 0) wait_for_dependency();
    return;
  }
  Contributions parts = {};
  if (candidate < candidates) parts = find_contributions(p, candidate, head, by_border);
  // Every CTA waits, also those without work: this grid must not end before the one it follows.
  wait_for_dependency();
  if (parts.parts.count == 0) return;

  CombineState<kPerLane> state;
  if (by_warp) {
    add_parts(p, parts, 0, 1, state);
    write_row<Element>(p, parts, state);
    return;
  }

  // The CTA's warps share the parts; the first warp adds up what they found.
  __shared__ float warp_out[kCombineWarps][kDimTile];
  __shared__ float2 warp_stats[kCombineWarps];
  add_parts(p, parts, warp, kCombineWarps, state);
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) warp_out[warp][j * 32 + lane] = state.out[j];
  if (lane == 0) warp_stats[warp] = make_float2(state.maximum, state.sum);
  __syncthreads();
  if (warp != 0) return;
  CombineState<kPerLane> total;
#pragma unroll
  for (int w = 0; w < kCombineWarps; ++w) total.maximum = fmaxf(total.maximum, warp_stats[w].x);
  const float base = total.maximum == negative_infinity() ? 0.0f : total.maximum;
#pragma unroll
  for (int w = 0; w < kCombineWarps; ++w) {
    const float weight = exp2f(warp_stats[w].x - base);
    total.sum += weight * warp_stats[w].y;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) total.out[j] += weight * warp_out[w][j * 32 + lane];
  }
  write_row<Element>(p, parts, total);
}

}  // namespace jax_baracuda
