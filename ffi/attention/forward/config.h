// Tile shapes of the forward kernel and the choice among them. Host-safe.
#pragma once

#include "attention/params.h"
#include "common/dtype.h"

namespace jax_baracuda {

// A CTA takes m query rows and goes over the keys n at a time, with the next block on its way in a second buffer; each
// warp has m / warps rows.
struct ForwardTile {
  int element;     // bytes of one
  bool features;   // see has_features()
  int dim, dim_v;  // head dims rounded up to these
  int m, n, warps;
  int ctas;    // of an SM
  bool paged;  // compiled for keys in pages, too

  constexpr int shared_bytes() const {
    const int query = m * (dim > dim_v ? dim : dim_v);  // also the output, on its way out
    return (query + 2 * n * (dim + dim_v)) * element;
  }
  constexpr bool operator==(const ForwardTile& o) const {
    return element == o.element && features == o.features && dim == o.dim && dim_v == o.dim_v &&
           m == o.m && n == o.n && warps == o.warps && ctas == o.ctas;
  }
};

// The compiled tiles; the first that fits is taken, and instantiations.cmake names them. 32 rows a warp use every key
// fragment twice; at 192 and 256 columns of output there are registers for 16. Features need registers of their own.
// clang-format off
constexpr ForwardTile kForwardTiles[] = {
    {2, false, 32, 32, 128, 64, 4, 3, false},
    {2, false, 64, 64, 128, 64, 4, 3, true},
    {2, false, 96, 96, 128, 64, 4, 2, false},
    {2, false, 128, 128, 128, 64, 4, 2, true},
    {2, false, 128, 128, 128, 32, 4, 2, true},  // SMs with less than 200 KB of shared memory
    {2, false, 192, 128, 128, 32, 4, 2, false},
    {2, false, 192, 192, 128, 64, 8, 1, false},
    {2, false, 256, 256, 128, 64, 8, 1, true},
    {2, false, 256, 256, 64, 32, 4, 1, true},  // 99 KB
    {2, true, 32, 32, 128, 64, 4, 2, false},
    {2, true, 64, 64, 128, 64, 4, 2, true},
    {2, true, 96, 96, 128, 32, 4, 2, false},
    {2, true, 128, 128, 128, 32, 4, 2, true},
    {2, true, 256, 256, 128, 32, 8, 1, true},
    {2, true, 256, 256, 64, 32, 4, 1, true},
    {4, true, 64, 64, 64, 32, 4, 2, true},
    {4, true, 128, 128, 64, 32, 4, 1, true},
    {4, true, 256, 256, 64, 16, 4, 1, true},
    {4, true, 256, 256, 32, 16, 2, 1, true},
};
// clang-format on

// The tile for these head dims where an SM has so much shared memory and a CTA may have so much of it: the first of the
// closest head dims that leaves room for as many CTAs as it is made for, else the smallest of them. Null if none fits.
inline const ForwardTile* choose_forward_tile(int element, bool features, bool paged, int dim,
                                              int dim_v, int sm_shared, int cta_shared) {
  constexpr int kStatic = 1024;    // of a CTA: variables of the kernel
  constexpr int kReserved = 1024;  // what the system keeps
  const ForwardTile* small = nullptr;
  for (const ForwardTile& tile : kForwardTiles) {
    if (tile.element != element || tile.features != features || (paged && !tile.paged) ||
        dim > tile.dim || dim_v > tile.dim_v)
      continue;
    if (small && (tile.dim != small->dim || tile.dim_v != small->dim_v)) break;
    const int bytes = tile.shared_bytes() + kStatic;
    if (bytes > cta_shared) continue;
    if (tile.ctas * (bytes + kReserved) <= sm_shared) return &tile;
    small = &tile;
  }
  return small;
}

constexpr ForwardTile forward_tile(int element, bool features, int dim, int dim_v, int m, int n) {
  for (const ForwardTile& tile : kForwardTiles)
    if (tile.element == element && tile.features == features && tile.dim == dim &&
        tile.dim_v == dim_v && tile.m == m && tile.n == n)
      return tile;
  return {};
}

}  // namespace jax_baracuda
