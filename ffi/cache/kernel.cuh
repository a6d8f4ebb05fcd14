// The row kernel: copies rows to where they belong, some of them rotated.
//
// A row is cut in pieces of kPiece elements (16 bytes, or one element), two of which make a unit:
//   rotated columns, R of them   unit u has piece u of the first half and piece u of the second; each pair of columns
//                                lies within a unit, whichever way they are paired
//   the others                   likewise: the pieces of the first half, then those of the second, if there are any
// A CTA has a tile of tokens by heads. Its threads go through the tile's units in the order of the source, so that it reads
// one contiguous stretch; all of it is asked for at once. Meanwhile a thread a token finds out where that goes, and all
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
  if (kPairs != Pairs::kNone && index < set.rotary_units) {
    if (kPairs == Pairs::kNeighbours && kPiece == 1) return {2 * index, 2 * index + 1, true, true};
    const int first = index * kPiece;
    return {first, first + set.rotary_dim / 2, true, true};
  }
  const int first = set.rotary_dim + (index - set.rotary_units) * kPiece;
  const int second = first + (static_cast<int>(set.units.divisor) - set.rotary_units) * kPiece;
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
  __device__ static int2 stored(int at, int units) {
    const int group = at / kTogether, layer = group / units;
    return make_int2(group - layer * units, layer * kTogether + at % kTogether);
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

  __device__ RowTile(const RowSet& set, int cta) {
    const int block = divide(cta, set.head_slices);
    first_token = block * set.tile_tokens;
    first_head = (cta - block * static_cast<int>(set.head_slices.divisor)) * set.tile_heads;
  }
};

// A unit of a tile.
struct Item {
  unsigned token, head, unit;  // the token counted within the tile
  bool valid;

  __device__ __forceinline__ Item(const RowParams& p, const RowSet& set, const RowTile& tile,
                                  unsigned index) {
    const unsigned row = divide(index, set.units);
    unit = index - row * set.units.divisor;
    const unsigned outer = divide(row, set.inner);
    const unsigned inner = row - outer * set.inner.divisor;
    token = set.head_inner ? outer : inner;
    head = tile.first_head + (set.head_inner ? inner : outer);
    valid = index < set.tile_units && tile.first_token + token < p.tokens && head < set.heads;
  }
};

// The angles of the pairs of a tile's tokens, one a thread and turn.
template <Pairs kPairs, int kPiece, int kThreads>
__device__ __forceinline__ void find_turns(const RowParams& p, const RowSet& set,
                                           const RowTile& tile, float2* turns) {
  const unsigned pairs = set.rotary_units * kPiece;  // of a token
  const unsigned count = min(set.tile_tokens, p.tokens - tile.first_token) * pairs;
#pragma unroll 1
  for (unsigned at = threadIdx.x; at < count; at += kThreads) {
    const unsigned token = at / pairs;
    const int2 stored = Turns<kPiece>::stored(at - token * pairs, set.rotary_units);
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
  const RowTile tile(set, cta);
  int64_t* places = reinterpret_cast<int64_t*>(row_shared);
  float2* turns = reinterpret_cast<float2*>(row_shared + (set.tile_tokens + 1) / 2);
  const T* source = static_cast<const T*>(set.source) + tile.first_token * set.source_token;

  const bool owns = threadIdx.x < min(set.tile_tokens, p.tokens - tile.first_token);
  Token own = {};
  if (owns) own = find_token(p, tile.first_token + threadIdx.x);

#pragma unroll 1
  for (int begin = 0; begin < set.tile_units; begin += kThreads * kBatch) {
    Piece<T, kPiece> first[kBatch], second[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const Item item(p, set, tile, begin + i * kThreads + threadIdx.x);
      const Unit unit = find_unit<kPairs, kPiece>(set, item.unit);
      const unsigned request = divide(tile.first_token + item.token, p.request_tokens);
      const T* row = source + item.token * set.source_token + item.head * set.source_head +
                     request * set.source_gap;
      first[i].load(row + unit.first, item.valid);
      second[i].load(row + unit.second, item.valid && unit.has_second);
    }
    // While the first rows are on their way: where they go, and how far they turn.
    if (begin == 0) {
      if (owns) places[threadIdx.x] = place(p, set, own);
      if constexpr (kPairs != Pairs::kNone)
        find_turns<kPairs, kPiece, kThreads>(p, set, tile, turns);
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const Item item(p, set, tile, begin + i * kThreads + threadIdx.x);
      if (!item.valid || places[item.token] < 0) continue;
      const Unit unit = find_unit<kPairs, kPiece>(set, item.unit);
      if constexpr (kPairs != Pairs::kNone) {
        if (unit.rotated) {
          float2 turn[kPiece];
          Turns<kPiece>::load(turns + item.token * set.rotary_units * kPiece, item.unit,
                              set.rotary_units, turn);
          rotate<kPairs>(first[i], second[i], turn);
        }
      }
      T* row = static_cast<T*>(set.target) + places[item.token] + item.head * set.target_head;
      first[i].store(row + unit.first);
      if (unit.has_second) second[i].store(row + unit.second);
    }
  }
}

}  // namespace jax_baracuda
