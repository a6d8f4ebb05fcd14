// The row kernel: copies rows to where they belong, some of them rotated.
//
// A row is cut in pieces of kPiece elements (16 bytes, or one element), two of which make a unit:
//   rotated columns, R of them   unit u has piece u of the first half and piece u of the second; each pair of columns
//                                lies within a unit, whichever way they are paired
//   the others                   likewise: the pieces of the first half, then those of the second, if there are any
// 2^lane_bits lanes share a token and a slice of heads. Each keeps its unit (one of each 2^lane_bits), and with it
// its angles, and goes through the heads.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "cache/angle.cuh"
#include "cache/config.h"
#include "cache/params.h"
#include "cache/place.cuh"
#include "device/math.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

enum class Pairs {
  kNone,        // nothing is rotated
  kHalves,      // columns i and i + R / 2
  kNeighbours,  // columns 2 i and 2 i + 1
};

template <class T, int kPiece>
struct alignas(kPiece * sizeof(T)) Piece {
  T elements[kPiece];

  __device__ __forceinline__ void load(const T* address, bool valid) {
    if constexpr (sizeof(Piece) == 16) {
      const uint4 bytes = load_global_16_if(address, valid);
      memcpy(elements, &bytes, 16);
    } else {
      static_assert(kPiece == 1);
      elements[0] = valid ? *address : T();
    }
  }
  __device__ __forceinline__ void store(T* address) const {
    *reinterpret_cast<Piece*>(address) = *this;
  }
};

// Where the pieces of a unit are, in columns.
struct Unit {
  int first, second;
  bool rotated, has_second;
};

template <Pairs kPairs, int kPiece>
__device__ __forceinline__ Unit find_unit(const RowSet& set, int index) {
  if (kPairs != Pairs::kNone && index < set.rotary_units) {
    if (kPairs == Pairs::kNeighbours && kPiece == 1) return {2 * index, 2 * index + 1, true, true};
    const int first = index * kPiece;
    return {first, first + set.rotary_dim / 2, true, true};
  }
  const int first = set.rotary_dim + (index - set.rotary_units) * kPiece;
  const int second = first + (set.units - set.rotary_units) * kPiece;
  return {first, second, false, second < set.dim};
}

// Cosines and sines of the pairs of a unit. Neighbours: first those of the first piece.
template <Pairs kPairs, int kPiece>
__device__ __forceinline__ void find_angles(const RowParams& p, const RowSet& set, int unit,
                                            int position, float2 (&turns)[kPiece]) {
#pragma unroll
  for (int i = 0; i < kPiece; ++i) {
    int pair = unit * kPiece + i;
    if constexpr (kPairs == Pairs::kNeighbours && kPiece > 1) {
      constexpr int kHalf = kPiece / 2;
      pair = unit * kHalf + (i < kHalf ? i : set.rotary_dim / 4 + i - kHalf);
    }
    const float2 turn = cos_sin(static_cast<float>(position) * p.inv_freq[pair]);
    turns[i] = make_float2(turn.x * p.attention_factor, turn.y * p.attention_factor);
  }
}

template <class T>
__device__ __forceinline__ void rotate_pair(T& a, T& b, float2 turn) {
  const float x = static_cast<float>(a), y = static_cast<float>(b);
  a = from_float<T>(x * turn.x - y * turn.y);
  b = from_float<T>(y * turn.x + x * turn.y);
}

template <Pairs kPairs, class T, int kPiece>
__device__ __forceinline__ void rotate(Piece<T, kPiece>& first, Piece<T, kPiece>& second,
                                       const float2 (&turns)[kPiece]) {
  if constexpr (kPairs == Pairs::kNeighbours && kPiece > 1) {
    constexpr int kHalf = kPiece / 2;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      rotate_pair(first.elements[2 * i], first.elements[2 * i + 1], turns[i]);
      rotate_pair(second.elements[2 * i], second.elements[2 * i + 1], turns[kHalf + i]);
    }
  } else if constexpr (kPairs != Pairs::kNone) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) rotate_pair(first.elements[i], second.elements[i], turns[i]);
  }
}

// CTAs: blocks of tokens, by the slices of all sets.
template <class T, int kPiece, Pairs kPairs>
__global__ void __launch_bounds__(kRowThreads) row_kernel(const __grid_constant__ RowParams p) {
  const int lanes = 1 << p.lane_bits;
  const int token =
      blockIdx.x * (kRowThreads >> p.lane_bits) + (static_cast<int>(threadIdx.x) >> p.lane_bits);
  if (token >= p.tokens) return;
  int slice = blockIdx.y, index = 0;
  while (slice >= p.sets[index].slices) slice -= p.sets[index++].slices;
  const RowSet& set = p.sets[index];
  const int head = slice * p.slice_heads;
  const int heads = min(p.slice_heads, set.heads - head);

  const int request = divide(token, p.request_tokens);
  const int nth = token - request * static_cast<int>(p.request_tokens.divisor);
  const T* source = static_cast<const T*>(set.source) + request * set.source_request +
                    nth * set.source_token + head * set.source_head;
  T* target = static_cast<T*>(set.target) + head * set.target_head;
  int position = 0;

  const int lane = threadIdx.x & (lanes - 1);
  for (int at = lane; at < set.units; at += lanes) {
    const Unit unit = find_unit<kPairs, kPiece>(set, at);
    Piece<T, kPiece> first[kRowBatch], second[kRowBatch];
    auto load = [&](int done) {
#pragma unroll
      for (int i = 0; i < kRowBatch; ++i) {
        const T* row = source + (done + i) * set.source_head;
        first[i].load(row + unit.first, done + i < heads);
        second[i].load(row + unit.second, done + i < heads && unit.has_second);
      }
    };
    load(0);
    // While the first rows are on their way: where they go, and how far they turn.
    if (at == lane) {
      position = position_of(p, token, request, nth);
      RowPlace place = {request, nth, true};
      if (set.placed)
        place = p.placement == Placement::kPages ? place_in_pages(p, token, position)
                                                 : place_in_cache(p, request, position);
      if (!place.kept) return;
      target += place.slot * set.target_slot + place.row * set.target_row;
    }
    float2 turns[kPiece] = {};
    if (unit.rotated) find_angles<kPairs, kPiece>(p, set, at, position, turns);

    for (int done = 0; done < heads; done += kRowBatch) {
      if (done > 0) load(done);
#pragma unroll
      for (int i = 0; i < kRowBatch; ++i) {
        if (done + i >= heads) break;
        if (unit.rotated) rotate<kPairs>(first[i], second[i], turns);
        T* row = target + (done + i) * set.target_head;
        first[i].store(row + unit.first);
        if (unit.has_second) second[i].store(row + unit.second);
      }
    }
  }
}

}  // namespace jax_baracuda
