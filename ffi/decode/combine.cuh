// Merges the partial results of the rows that several CTAs share: one (row, query head) to a warp where
// rows are many and their parts few, else to a CTA.
//
// It is launched to start while the decode kernel drains, and its own time counts in full for a short
// problem: one round of loads in which statistics and partial outputs travel together, one barrier.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

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

// What is to be added up for a query head of a row.
__device__ inline Contributions contributions_to(const DecodeParams& p, const Row& row, int head) {
  Contributions c = {};
  c.b = row.b;
  c.query_head = row.query_head(p) + head;
  c.query_row = row.query_row(p) + head;
  c.slot_head = first_slot_head(p, row.head_block) + head;
  return c;
}

// With a fixed split count: the candidates are the rows.
__device__ inline Contributions find_pieces(const DecodeParams& p, unsigned candidate, int head) {
  const unsigned rows = rows_per_request(p);
  const unsigned b = candidate / rows;
  const Row row(p, b, candidate - b * rows);
  if (head >= row.heads(p)) return {};
  Contributions c = contributions_to(p, row, head);
  c.parts = fixed_parts(p, row, load_request(p, b).chunks);
  return c;
}

// The row that a CTA of the combine grid looks after, in the stream. There are as many candidates as rows or, if that
// is less, as borders between the CTAs of the stream: only rows with a border inside were split.
template <int kBlocks>
__device__ inline Contributions find_contributions(const DecodeParams& p, unsigned candidate,
                                                   int head, bool by_border) {
  const RequestLine<Keys::kEither, kBlocks> line(p);
  const EvenCut cut = stream_cut(p, line.whole());
  unsigned b, index, chunks, lane = 0;
  int row_begin;
  if (by_border) {
    const unsigned piece = divide(candidate, p.lanes);
    lane = candidate - piece * p.lanes.divisor;
    const int border = cut.begin(piece + 1);
    if (border >= line.whole().total) return {};
    const Place place = line.find(p, border);
    b = place.b;
    chunks = load_request(p, b).chunks;
    index = static_cast<unsigned>(border - place.line_begin) / chunks;
    // The row is the business of the first border inside it.
    row_begin = place.line_begin + index * chunks;
    if (border == row_begin || cut.begin(piece) > row_begin) return {};
  } else {
    const unsigned rows = rows_per_request(p);
    b = candidate / rows;
    index = candidate - b * rows;
    if (p.lanes.divisor > 1) lane = index, index = 0;
    chunks = load_request(p, b).chunks;
    row_begin = line.before(p, b) + index * chunks;
  }
  const Row row(p, b, index + lane);
  if (head >= row.heads(p)) return {};
  Contributions c = contributions_to(p, row, head);
  c.parts = stream_parts(p, cut, row_begin, chunks, lane);
  if (c.parts.count == 1) c.parts.count = 0;
  return c;
}

// Elements of a row that are loaded together, if the head dim is a multiple of so many: lane l holds those from l * width on,
// and those that lie 32 * width further.
constexpr int combine_width(int per_lane) { return per_lane < 4 ? per_lane : 4; }

// Sums of some of the parts, spread over a warp.
template <int kPerLane>
struct CombineState {
  static constexpr int kWidth = combine_width(kPerLane);

  float maximum = negative_infinity();
  float sum = 0.0f;
  float out[kPerLane] = {};

  // Where element j of this lane is in the row.
  __device__ static int place(int j) {
    return (j / kWidth * 32 + threadIdx.x % 32) * kWidth + j % kWidth;
  }
};

// This lane's elements of a part that another kernel has written, past L1; zeros past the head dim.
template <bool kVector, int kPerLane>
__device__ __forceinline__ void load_part(const float* from, int head_dim, float (&to)[kPerLane]) {
  using State = CombineState<kPerLane>;
  constexpr int kStep = kVector ? State::kWidth : 1;
  using Vector =
      std::conditional_t<kStep == 4, float4, std::conditional_t<kStep == 2, float2, float>>;
#pragma unroll
  for (int j = 0; j < kPerLane; j += kStep) {
    const int d = State::place(j);
    Vector loaded = {};
    if (d < head_dim) loaded = __ldcg(reinterpret_cast<const Vector*>(from + d));
    memcpy(to + j, &loaded, sizeof(loaded));
  }
}

// A part's maximum and sum: together where they are aligned, as they are if a row is.
template <bool kVector>
__device__ __forceinline__ float2 load_stats(const float* from) {
  return kVector ? __ldcg(reinterpret_cast<const float2*>(from))
                 : make_float2(__ldcg(from), __ldcg(from + 1));
}

// Adds the parts first, first + step, ...: statistics and outputs of a batch are asked for together.
template <bool kVector, int kBatch, int kPerLane>
__device__ __forceinline__ void add_parts(const DecodeParams& p, const Contributions& parts,
                                          int first, int step, CombineState<kPerLane>& state) {
#pragma unroll 1
  for (; first < parts.parts.count; first += kBatch * step) {
    float loaded[kBatch][kPerLane];
    float2 stats[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int part = first + i * step;
      const bool valid = part < parts.parts.count;
      const Partial from = parts(p, valid ? part : first);
      stats[i] = make_float2(negative_infinity(), 0.0f);
      if (valid) stats[i] = load_stats<kVector>(from.stats);
      load_part<kVector>(from.out, valid ? p.head_dim : 0, loaded[i]);
    }
    float highest = state.maximum;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) highest = fmaxf(highest, stats[i].x);
    if (highest == negative_infinity()) continue;
    const float correction = exp2f(state.maximum - highest);
    state.maximum = highest;
    state.sum *= correction;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) state.out[j] *= correction;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float weight = exp2f(stats[i].x - highest);
      state.sum += weight * stats[i].y;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) state.out[j] += weight * loaded[i][j];
    }
  }
}

template <class Element, bool kVector, int kPerLane>
__device__ __forceinline__ void write_row(const DecodeParams& p, const Contributions& parts,
                                          const CombineState<kPerLane>& state) {
  using State = CombineState<kPerLane>;
  constexpr int kStep = kVector ? State::kWidth : 1;
  const Normalised n = normalise(p, state.maximum, state.sum, parts.b, parts.query_head);
  if (threadIdx.x % 32 == 0) p.lse[parts.query_row] = n.lse;
  Element* out = static_cast<Element*>(p.out) + parts.query_row * p.head_dim;
#pragma unroll
  for (int j = 0; j < kPerLane; j += kStep) {
    struct alignas(sizeof(Element) * kStep) Packed {
      Element elements[kStep];
    } packed;
#pragma unroll
    for (int e = 0; e < kStep; ++e)
      packed.elements[e] = from_float<Element>(state.out[j + e] * n.factor);
    const int d = State::place(j);
    if (d < p.head_dim) *reinterpret_cast<Packed*>(out + d) = packed;
  }
}

// A warp adds up all parts. True: this warp has the sum.
template <bool kVector, int kBatch, int kPerLane>
__device__ __forceinline__ bool add_by_warp(const DecodeParams& p, const Contributions& parts,
                                            CombineState<kPerLane>& sum) {
  add_parts<kVector, kBatch>(p, parts, 0, 1, sum);
  return true;
}

// The CTA's warps share the parts; the first warp adds up what they found. True: this warp has the sum.
template <bool kVector, int kBatch, int kPerLane>
__device__ __forceinline__ bool add_by_cta(const DecodeParams& p, const Contributions& parts,
                                           CombineState<kPerLane>& sum) {
  using State = CombineState<kPerLane>;
  __shared__ float4 warp_out[kCombineWarps][32 * kPerLane / 4];
  __shared__ float2 warp_stats[kCombineWarps];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  State own;
  add_parts<kVector, kBatch>(p, parts, warp, kCombineWarps, own);
#pragma unroll
  for (int j = 0; j < kPerLane; ++j)
    reinterpret_cast<float*>(warp_out[warp])[State::place(j)] = own.out[j];
  if (lane == 0) warp_stats[warp] = make_float2(own.maximum, own.sum);
  __syncthreads();
  if (warp != 0) return false;
#pragma unroll
  for (int w = 0; w < kCombineWarps; ++w) sum.maximum = fmaxf(sum.maximum, warp_stats[w].x);
  const float base = sum.maximum == negative_infinity() ? 0.0f : sum.maximum;
#pragma unroll
  for (int w = 0; w < kCombineWarps; ++w) {
    const float weight = exp2f(warp_stats[w].x - base);
    sum.sum += weight * warp_stats[w].y;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j)
      sum.out[j] += weight * reinterpret_cast<const float*>(warp_out[w])[State::place(j)];
  }
  return true;
}

// kVector: rows are loaded and stored some elements at a time. kBeside: with registers so few that CTAs fit beside those of a
// decode kernel that reads through rings, and begin before these end. kBlocks: see RequestLine.
template <class Element, int kDimTile, bool kVector, bool kBeside, int kBlocks>
__global__ void __launch_bounds__(kCombineWarps * 32, kBeside ? 4 : 1)
    combine_kernel(const __grid_constant__ DecodeParams p, unsigned candidates, bool by_border,
                   bool by_warp) {
  constexpr int kPerLane = kDimTile / 32;
  const int warp = threadIdx.x / 32;
  const unsigned unit = by_warp ? blockIdx.x * kCombineWarps + warp : blockIdx.x;
  const unsigned candidate = unit / static_cast<unsigned>(p.block_heads);
  const int head = unit - candidate * p.block_heads;
  Contributions parts = {};
  if (candidate < candidates) {
    if (p.splits > 0)
      parts = find_pieces(p, candidate, head);
    else
      parts = find_contributions<kBlocks>(p, candidate, head, by_border);
  }
  // Every CTA waits, also those without work: this grid must not end before the one it follows.
  wait_for_dependency();
  if (parts.parts.count == 0) return;
  CombineState<kPerLane> state;
  constexpr int kBatch = (kBeside ? 16 : 32) / kPerLane;
  const bool done = by_warp ? add_by_warp<kVector, kBatch>(p, parts, state)
                            : add_by_cta<kVector, kBatch>(p, parts, state);
  if (done) write_row<Element, kVector>(p, parts, state);
}

}  // namespace jax_baracuda
