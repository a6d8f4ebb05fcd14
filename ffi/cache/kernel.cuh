// The row kernel: copies rows to where they belong, some of them rotated.
//
// A row is cut in pieces of kPiece elements (16 bytes, or one element), two of which make a unit:
//   rotated columns, R of them   unit u has piece u of the first half and piece u of the second; each pair of columns
//                                lies within a unit, whichever way they are paired
//   the others                   likewise: the pieces of the first half, then those of the second, if there are any
// A CTA has a tile of tokens by heads. 2^lane_bits threads share a row, and neighbouring threads have neighbouring rows of the
// source, so that the CTA reads one contiguous stretch; all of it is asked for at once. Meanwhile a thread a token finds out where that goes, and all
// of them work out the angles, one a token and pair, which its heads share.
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
  const int rotary_units = set.rotary_dim / (2 * kPiece);
  if (kPairs != Pairs::kNone && index < rotary_units) {
    if (kPairs == Pairs::kNeighbours && kPiece == 1) return {2 * index, 2 * index + 1, true, true};
    const int first = index * kPiece;
    return {first, first + set.rotary_dim / 2, true, true};
  }
  const int first = set.rotary_dim + (index - rotary_units) * kPiece;
  const int second = first + (set.units - rotary_units) * kPiece;
  return {first, second, false, second < set.dim};
}

// The pair of columns that is number i of a unit. Neighbours: first those of the first piece.
template <Pairs kPairs, int kPiece>
__device__ __forceinline__ int pair_of(const RowSet& set, int unit, int i) {
  if constexpr (kPairs == Pairs::kNeighbours && kPiece > 1) {
    constexpr int kHalf = kPiece / 2;
    return unit * kHalf + (i < kHalf ? i : set.rotary_dim / 4 + i - kHalf);
  }
  return unit * kPiece + i;
}

// The cosines and sines of a token in shared memory, two pairs of every unit after another, so that lanes with
// consecutive units read consecutive 16 bytes.
template <int kPiece>
struct Turns {
  static constexpr int kTogether = kPiece > 1 ? 2 : 1;

  // Unit and number within it of the turn that is stored at `at`.
  __device__ static int2 stored(int at, const Divisor& units) {
    const int group = at / kTogether, layer = divide(group, units);
    return make_int2(group - layer * static_cast<int>(units.divisor),
                     layer * kTogether + at % kTogether);
  }
  __device__ __forceinline__ static void load(const float2* token, int unit, int units,
                                              float2 (&turns)[kPiece]) {
    if constexpr (kPiece == 1) {
      turns[0] = token[unit];
    } else {
#pragma unroll
      for (int i = 0; i < kPiece / 2; ++i) {
        const float4 two = reinterpret_cast<const float4*>(token)[i * units + unit];
        turns[2 * i] = make_float2(two.x, two.y);
        turns[2 * i + 1] = make_float2(two.z, two.w);
      }
    }
  }
};

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

// The tokens and heads of a CTA.
struct RowTile {
  int first_token, first_head;
  unsigned tokens, heads;

  __device__ RowTile(const RowParams& p, const RowSet& set, int cta) {
    const int block = divide(cta, set.head_slices);
    first_token = block * set.tile_tokens;
    first_head = (cta - block * static_cast<int>(set.head_slices.divisor)) * set.tile_heads;
    tokens = min(set.tile_tokens, p.tokens - first_token);
    heads = min(set.tile_heads, set.heads - first_head);
  }
};

// A row of a tile, within which its token and head are counted.
struct TileRow {
  unsigned token, head;
  bool valid;

  __device__ __forceinline__ TileRow(const RowSet& set, const RowTile& tile, unsigned index) {
    const unsigned outer = divide(index, set.inner);
    const unsigned inner = index - outer * set.inner.divisor;
    token = set.head_inner ? outer : inner;
    head = set.head_inner ? inner : outer;
    valid = token < tile.tokens && head < tile.heads;
  }
};

// The angles of the pairs of a tile's tokens, one a thread and turn.
template <Pairs kPairs, int kPiece, int kThreads>
__device__ __forceinline__ void find_turns(const RowParams& p, const RowSet& set,
                                           const RowTile& tile, float2* turns) {
  if (set.rotary_dim == 0) return;
  const unsigned count = tile.tokens * set.turns.divisor;
#pragma unroll 1
  for (unsigned at = threadIdx.x; at < count; at += kThreads) {
    const unsigned token = divide(at, set.turns);
    const int2 stored = Turns<kPiece>::stored(at - token * set.turns.divisor, set.rotary_units);
    const int position = position_of(p, find_token(p, tile.first_token + token));
    const float2 turn = cos_sin(static_cast<float>(position) *
                                p.inv_freq[pair_of<kPairs, kPiece>(set, stored.x, stored.y)]);
    turns[at] = make_float2(turn.x * p.attention_factor, turn.y * p.attention_factor);
  }
}

// CTAs: the tiles of the first set, of the second, of the third.
template <class T, int kPiece, Pairs kPairs, int kThreads, int kBatch>
__global__ void __launch_bounds__(kThreads, (kBatch > 4 ? 512 : 1024) / kThreads)
    row_kernel(const __grid_constant__ RowParams p) {
  extern __shared__ float4 row_shared[];
  int cta = blockIdx.x, index = 0;
  while (cta >= p.sets[index].ctas) cta -= p.sets[index++].ctas;
  const RowSet& set = p.sets[index];
  const RowTile tile(p, set, cta);
  int64_t* places = reinterpret_cast<int64_t*>(row_shared);
  float2* turns = reinterpret_cast<float2*>(row_shared + (set.tile_tokens + 1) / 2);
  const T* source = static_cast<const T*>(set.source) +
                    int64_t{tile.first_token} * set.source_token +
                    int64_t{tile.first_head} * set.source_head;
  T* target = static_cast<T*>(set.target) + tile.first_head * set.target_head;

  const bool owns = threadIdx.x < tile.tokens;
  Token own = {};
  if (owns) own = find_token(p, tile.first_token + threadIdx.x);

  // A thread keeps its unit and has every `step`-th row; more units than threads are taken in turns.
  const int lanes = 1 << set.lane_bits;
  const unsigned first_row = threadIdx.x >> set.lane_bits, step = kThreads >> set.lane_bits;
#pragma unroll 1
  for (int at = threadIdx.x & (lanes - 1), begin = 0; begin < set.units;
       begin += lanes, at += lanes) {
    const Unit unit = find_unit<kPairs, kPiece>(set, at);
    Piece<T, kPiece> first[kBatch], second[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const TileRow row(set, tile, first_row + i * step);
      const unsigned request = request_of(p, tile.first_token + row.token);
      const T* from = source + uint64_t{row.token} * set.source_token +
                      uint64_t{row.head} * set.source_head + request * set.source_gap;
      const bool valid = row.valid && at < set.units;
      first[i].load(from + unit.first, valid);
      second[i].load(from + unit.second, valid && unit.has_second);
    }
    // While the first rows are on their way: where they go, and how far they turn.
    if (begin == 0) {
      if (owns) places[threadIdx.x] = place(p, set, own);
      if constexpr (kPairs != Pairs::kNone)
        find_turns<kPairs, kPiece, kThreads>(p, set, tile, turns);
      __syncthreads();
    }
    if (at >= set.units) continue;
    unsigned again =
        first_row;  // rows are worked out once more: to keep them costs registers that are needed
    asm volatile("" : "+r"(again));
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const TileRow row(set, tile, again + i * step);
      if (!row.valid || places[row.token] < 0) continue;
      if constexpr (kPairs != Pairs::kNone) {
        if (unit.rotated) {
          float2 turn[kPiece];
          Turns<kPiece>::load(turns + row.token * set.turns.divisor, at, set.rotary_units.divisor,
                              turn);
          rotate<kPairs>(first[i], second[i], turn);
        }
      }
      T* to = target + places[row.token] + row.head * set.target_head;
      first[i].store(to + unit.first);
      if (unit.has_second) second[i].store(to + unit.second);
    }
  }
}

}  // namespace jax_baracuda
