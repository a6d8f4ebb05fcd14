// Tile shapes of the forward kernel and the choice among them. Host-safe.
#pragma once

#include "attention/params.h"
#include "common/dtype.h"

namespace jax_baracuda {

// A CTA takes m query rows and goes over the keys n at a time; each warp has m / warps rows.
struct ForwardTile {
  int element;      // bytes of one
  bool features;    // see has_features()
  int dim, dim_v;   // head dims rounded up to these
  int m, n, warps;

  constexpr int shared_bytes() const {
    const int query = m * (dim > dim_v ? dim : dim_v);  // also the output, on its way out
    return (query + n * (dim + dim_v)) * element;
  }
  constexpr bool operator==(const ForwardTile& o) const {
    return element == o.element && features == o.features && dim == o.dim && dim_v == o.dim_v &&
           m == o.m && n == o.n && warps == o.warps;
  }
};

// The compiled tiles, the first that fits is taken; instantiations.cmake names them. 32 rows a warp use every key
// fragment twice; at 192 and 256 columns of output there are registers for 16. Features need registers of their own.
constexpr ForwardTile kForwardTiles[] = {
    {2, false, 32, 32, 128, 128, 4},
    {2, false, 64, 64, 128, 128, 4},
    {2, false, 96, 96, 128, 64, 4},
    {2, false, 128, 128, 128, 64, 4},
    {2, false, 192, 128, 128, 64, 4},
    {2, false, 192, 192, 128, 64, 8},
    {2, false, 256, 256, 128, 64, 8},
    {2, false, 256, 256, 128, 32, 8},  // for 99 KB of shared memory
    {2, true, 32, 32, 128, 64, 4},
    {2, true, 64, 64, 128, 64, 4},
    {2, true, 96, 96, 128, 32, 4},
    {2, true, 128, 128, 128, 32, 4},
    {2, true, 192, 192, 128, 32, 8},
    {2, true, 256, 256, 128, 32, 8},
    {4, true, 64, 64, 64, 64, 4},
    {4, true, 128, 128, 64, 32, 4},
    {4, true, 256, 256, 64, 16, 4},
};

// The tile for these head dims on an SM with so much shared memory; null if there is none.
inline const ForwardTile* choose_forward_tile(int element, bool features, int dim, int dim_v, int max_shared) {
  for (const ForwardTile& tile : kForwardTiles)
    if (tile.element == element && tile.features == features && dim <= tile.dim && dim_v <= tile.dim_v &&
        tile.shared_bytes() <= max_shared)
      return &tile;
  return nullptr;
}

constexpr ForwardTile forward_tile(int element, bool features, int dim, int dim_v, int n) {
  for (const ForwardTile& tile : kForwardTiles)
    if (tile.element == element && tile.features == features && tile.dim == dim && tile.dim_v == dim_v &&
        tile.n == n)
      return tile;
  return {};
}

}  // namespace jax_baracuda
