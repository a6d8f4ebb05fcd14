// Which blocks of keys a CTA takes.
#pragma once

#include "attention/hopper/backward/params.h"

namespace jax_baracuda {

// The first tile of a CTA is that of its number; the others come from a counter that all CTAs share, when the CTA has loaded
// all of the tile before. (Not sooner: a CTA that has just begun a long tile would get the next one, and others have nothing
// to do at the end. In order, others wait for what a tile adds: whoever has a place begins with it, so the first one comes from
// the counter, too.) A pair of CTAs has one tile, whose place it took from the counter. Under a causal mask the first block of
// keys of a row meets most queries: it comes first. A warp walks together.
template <bool kOnce>
struct KeyTileWalk {
  const HopperBackwardParams& p;
  int upcoming;  // of lane 0; -1: to be asked for
  const bool in_order;

  __device__ __forceinline__ KeyTileWalk(const HopperBackwardParams& p, int first, bool in_order)
      : p(p), upcoming(!kOnce && in_order ? -1 : first), in_order(in_order) {}

  // The place of the next tile.
  __device__ __forceinline__ int take() {
    if (kOnce) {
      const int place = upcoming;
      upcoming = p.tiles * p.rows;
      return place;
    }
    if (threadIdx.x % 32 == 0 && upcoming < 0) upcoming = ask();
    const int place = __shfl_sync(0xffffffffu, upcoming, 0);
    upcoming = -1;
    return place;
  }
  __device__ __forceinline__ int ask() const {
    return (in_order ? 0 : int(gridDim.x)) + atomicAdd(p.counter, 1);
  }

  // Finds the next tile, and whether it goes over its query rows backwards (in order, see begin_tile()); false if there is
  // none.
  __device__ __forceinline__ bool next(int* row, int* tile, bool* backward) {
    const int place = take();
    if (place >= p.tiles * p.rows) return false;
    const int before = p.rows - p.last;  // rows
    const int section = place < before * p.tiles ? p.section : max(p.last, 1);
    const int base = place < before * p.tiles ? 0 : before, end = base     ? p.rows
                                                                  : before ? before
                                                                           : p.rows;
    const int index = place - base * p.tiles;
    const int first = base + index / (section * p.tiles) * section;
    const int within = index % (section * p.tiles), rows = min(section, end - first);
    *row = first + within % rows;
    *tile = in_order && p.reversed(*row) ? p.tiles - 1 - within / rows : within / rows;
    *backward = !kOnce && !in_order && p.wave > 0 && within / p.wave % 2 == 0;
    return true;
  }
};

}  // namespace jax_baracuda
