// Which blocks of keys a CTA takes.
#pragma once

#include "attention/hopper/backward/params.h"
#include "attention/hopper/backward/row_walk.cuh"

namespace jax_baracuda {

// The first tile of a CTA is that of its number; the others come from a counter that all CTAs share, when the CTA has loaded
// all of the tile before. (Not sooner: a CTA that has just begun a long tile would get the next one, and others have nothing
// to do at the end. In order, others wait for what a tile adds: whoever has a place begins with it, so the first one comes from
// the counter, too.) A pair of CTAs has one tile, whose place it took from the counter. Under a causal mask the first block of
// keys of a row meets most queries: it comes first. A warp walks together.
template <bool kOnce, bool kDivides>
struct KeyTileWalk {
  const HopperBackwardParams& p;
  int upcoming;  // of lane 0; -1: to be asked for
  const bool in_order, asks_first;

  // `asks_first`: the first place comes from the counter, too.
  __device__ __forceinline__ KeyTileWalk(const HopperBackwardParams& p, int first, bool in_order,
                                         bool asks_first)
      : p(p),
        upcoming(!kOnce && asks_first ? -1 : first),
        in_order(in_order),
        asks_first(asks_first) {}

  // The place of the next tile.
  __device__ __forceinline__ int take() {
    if (kOnce) {
      const int place = upcoming;
      upcoming = p.places;
      return place;
    }
    if (threadIdx.x % 32 == 0 && upcoming < 0) upcoming = ask();
    const int place = __shfl_sync(0xffffffffu, upcoming, 0);
    upcoming = -1;
    return place;
  }
  __device__ __forceinline__ int ask() const {
    return (asks_first ? 0 : int(gridDim.x)) + atomicAdd(p.counter, 1);
  }

  // Finds the next tile; false if there is none.
  __device__ __forceinline__ bool next(TilePlace* to) {
    int place = take(), part = -1;
    if (place >= p.places) return false;
    if (const int whole = p.tiles * p.rows - p.divided; kDivides && place >= whole) {
      part = place - whole;
      place = whole + part % p.divided;
    }
    const int before = p.rows - p.last;  // rows
    const int section = place < before * p.tiles ? p.section : max(p.last, 1);
    const int base = place < before * p.tiles ? 0 : before, end = base     ? p.rows
                                                                  : before ? before
                                                                           : p.rows;
    const int index = place - base * p.tiles;
    const int first = base + index / (section * p.tiles) * section;
    const int within = index % (section * p.tiles), rows = min(section, end - first);
    const bool waves = (!kOnce || in_order) && p.wave > 0;
    *to = waves ? in_wave(within, rows) : in_section(within, rows, first);
    to->row += first;
    to->part = part;
    return true;
  }

 private:
  // The tile of place `within` in a section of so many rows that begins at row `first`; rows count from there.
  __device__ __forceinline__ TilePlace in_section(int within, int rows, int first) const {
    const int row = within % rows, tile = within / rows;
    if (in_order && p.reversed(first + row))
      return {row, p.tiles - 1 - tile, {0, p.tiles, KeyOrder::kDescending}};
    return {row, tile, {0, p.tiles, in_order ? KeyOrder::kBackward : 0}};
  }
  // The same where tiles come in waves: there and back. In order, the tiles of a wave that goes backwards begin with the
  // shortest one, so that a tile lags behind the one before it by an addition, and the next wave finds the CTAs in its own
  // order.
  __device__ __forceinline__ TilePlace in_wave(int within, int rows) const {
    const int number = within / p.wave, begin = number * p.wave;
    const int end = min(begin + p.wave, rows * p.tiles);
    int way = 0;
    if (number % 2 == 0) way = KeyOrder::kBackward | (in_order ? KeyOrder::kDescending : 0);
    const int place = way & KeyOrder::kDescending ? begin + end - 1 - within : within;
    const int row = place % rows;
    // The row's tiles at places [begin, end).
    return {
        row, place / rows, {(begin + rows - 1 - row) / rows, (end + rows - 1 - row) / rows, way}};
  }
};

}  // namespace jax_baracuda
