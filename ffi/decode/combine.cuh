// Merges the partial results of the rows that several CTAs share, one (row, query head) a CTA.
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
  int count;  // 0: the row has one owner, who has written its output
  int slot_head;
  int64_t first_slot, second_slot;
  int slot_step;  // from the second on

  __device__ Partial operator()(const DecodeParams& p, int i) const {
    const int64_t slot = i == 0 ? first_slot : second_slot + int64_t{i - 1} * slot_step;
    return workspace_partial(p, slot, slot_head);
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
    const EvenCut cut(total, min(p.ctas, total));
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
  const Cursor cursor(p, request, b, row, 0, 0);
  if (head >= cursor.heads(p)) return c;
  c.b = b;
  c.query_head = cursor.query_head(p) + head;
  c.query_row = cursor.query_row(p) + head;
  c.slot_head = first_slot_head(p, cursor.head_block) + head;
  if (p.splits > 0) {
    c.count = min(p.splits, request.chunks);
    c.first_slot = fixed_slot(p, b, cursor.kv_head, 0);
    c.second_slot = c.first_slot + 1;
    c.slot_step = 1;
    return c;
  }
  const int total = chunks_before(p, p.batch);
  const EvenCut cut(total, min(p.ctas, total));
  const int row_begin = chunks_before(p, b) + row * request.chunks;
  const int first = cut.piece_of(row_begin);
  const int last = cut.piece_of(row_begin + request.chunks - 1);
  if (first == last) return c;
  c.count = last - first + 1;
  c.first_slot = 2 * int64_t{first} + (cut.begin(first) == row_begin ? 0 : 1);
  c.second_slot = 2 * (int64_t{first} + 1);
  c.slot_step = 2;
  return c;
}

template <class Element, int kDimTile>
__global__ void __launch_bounds__(kCombineWarps * 32)
    combine_kernel(const __grid_constant__ DecodeParams p, bool by_border) {
  static_assert(kCombineWarps * 32 >= kDimTile);  // the last step is one thread an element
  constexpr int kPerLane = kDimTile / 32;
  constexpr int kBatch = 16 / kPerLane * 2;  // parts that a warp asks for at once
  __shared__ float warp_out[kCombineWarps][kDimTile];
  __shared__ float warp_maximum[kCombineWarps];
  __shared__ float warp_sum[kCombineWarps];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;

  const Contributions parts = find_contributions(p, blockIdx.x, blockIdx.y, by_border);
  // Every CTA waits, also those without work: this grid must not end before the one it follows.
  wait_for_dependency();
  if (parts.count == 0) return;

  float maximum = negative_infinity();
  float sum = 0.0f;
  float out[kPerLane] = {};
#pragma unroll 1
  for (int first = warp; first < parts.count; first += kBatch * kCombineWarps) {
    float loaded[kBatch][kPerLane];
    float own_maximum[kBatch];
    float own_sum[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int part = first + i * kCombineWarps;
      const bool valid = part < parts.count;
      const Partial from = parts(p, valid ? part : first);
      own_maximum[i] = valid ? __ldcg(from.stats) : negative_infinity();
      own_sum[i] = valid ? __ldcg(from.stats + 1) : 0.0f;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int d = j * 32 + lane;
        loaded[i][j] = valid && d < p.head_dim ? __ldcg(from.out + d) : 0.0f;
      }
    }
    float highest = maximum;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) highest = fmaxf(highest, own_maximum[i]);
    if (highest == negative_infinity()) continue;
    const float correction = exp2f(maximum - highest);
    maximum = highest;
    sum *= correction;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) out[j] *= correction;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float weight = exp2f(own_maximum[i] - highest);
      sum += weight * own_sum[i];
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) out[j] += weight * loaded[i][j];
    }
  }

#pragma unroll
  for (int j = 0; j < kPerLane; ++j) warp_out[warp][j * 32 + lane] = out[j];
  if (lane == 0) {
    warp_maximum[warp] = maximum;
    warp_sum[warp] = sum;
  }
  __syncthreads();

  maximum = negative_infinity();
#pragma unroll
  for (int w = 0; w < kCombineWarps; ++w) maximum = fmaxf(maximum, warp_maximum[w]);
  const float base = maximum == negative_infinity() ? 0.0f : maximum;
  float weights[kCombineWarps];
  sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kCombineWarps; ++w) {
    weights[w] = exp2f(warp_maximum[w] - base);
    sum += weights[w] * warp_sum[w];
  }
  const Normalised n = normalise(p, maximum, sum, parts.b, parts.query_head);
  if (threadIdx.x == 0) p.lse[parts.query_row] = n.lse;
  if (threadIdx.x < p.head_dim) {
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kCombineWarps; ++w) total += weights[w] * warp_out[w][threadIdx.x];
    static_cast<Element*>(p.out)[parts.query_row * p.head_dim + threadIdx.x] =
        from_float<Element>(total * n.factor);
  }
}

}  // namespace jax_baracuda
