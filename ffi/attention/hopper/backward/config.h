// Tiles of the Hopper backward kernel and the choice among them. Host-safe.
#pragma once

#include "attention/params.h"
#include "common/dtype.h"

namespace jax_baracuda {

// How two warpgroups share the work on dQ: by columns, by rows (of 128), or by turns, a row block each.
enum class QuerySplit { kColumns, kRows, kTurns };

// A CTA takes 128 keys, 64 a warpgroup, and goes over the query rows `rows` at a time.
struct HopperBackwardTile {
  int dim, dim_v;  // head dims rounded up to these
  int rows;        // 64 or 128
  QuerySplit split;
  // Where registers are short: dP is asked for when the weights are there, and the gradients of the scores are computed
  // from weights that have been rounded to 16 bits, as the products take them.
  bool late, rounded_weights;

  constexpr bool operator==(const HopperBackwardTile& o) const {
    return dim == o.dim && dim_v == o.dim_v;
  }
};

// The compiled tiles, which instantiations.cmake names; the first that fits is taken.
constexpr HopperBackwardTile kHopperBackwardTiles[] = {
    {64, 64, 128, QuerySplit::kRows, true, true},
    {96, 96, 64, QuerySplit::kTurns, true, true},
    {128, 128, 64, QuerySplit::kColumns, false, false},
};

inline const HopperBackwardTile* choose_hopper_backward_tile(int dim, int dim_v) {
  for (const HopperBackwardTile& tile : kHopperBackwardTiles)
    if (dim <= tile.dim && dim_v <= tile.dim_v) return &tile;
  return nullptr;
}

constexpr HopperBackwardTile hopper_backward_tile(int dim, int dim_v) {
  for (const HopperBackwardTile& tile : kHopperBackwardTiles)
    if (tile.dim == dim && tile.dim_v == dim_v) return tile;
  return {};
}

}  // namespace jax_baracuda
