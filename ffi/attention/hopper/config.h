// Tiles of the Hopper forward kernel and the choice among them. Host-safe.
#pragma once

#include "attention/params.h"
#include "common/dtype.h"

namespace jax_baracuda {

// A CTA has `groups` warpgroups of 64 query rows each and goes over the keys n at a time.
struct HopperTile {
  bool features;   // see has_features()
  int dim, dim_v;  // head dims rounded up to these
  int n, groups;
  int query_stages;       // 2: the next tile's queries are loaded while this one is at work
  bool pingpong;          // the warpgroups issue their products in turns
  bool overlap;           // softmax while P.V of the same warpgroup runs: takes registers
  int keys, causal_keys;  // for as many keys or more, without and with a causal mask
  bool paged;             // compiled for keys in pages, too

  constexpr int m() const { return 64 * groups; }
  constexpr bool operator==(const HopperTile& o) const {
    return features == o.features && dim == o.dim && dim_v == o.dim_v && n == o.n &&
           groups == o.groups;
  }
};

// The compiled tiles, which instantiations.cmake names; the first that fits is taken. Long blocks and many rows need less
// shared memory traffic and fewer barriers a product; short sequences and the diagonal waste less of small ones.
// clang-format off
constexpr HopperTile kHopperTiles[] = {
    {false, 64, 64, 128, 3, 1, true, false, 0, 2048, false},
    {false, 64, 64, 128, 2, 2, true, false, 0, 0, true},
    {false, 96, 96, 176, 2, 1, true, false, 1024, 4096, false},
    {false, 96, 96, 128, 2, 2, true, false, 0, 0, true},
    {false, 128, 128, 128, 2, 1, true, true, 0, 0, true},
    {false, 192, 128, 128, 2, 1, false, false, 0, 0, false},
    {false, 192, 192, 112, 2, 1, false, false, 0, 0, true},
    {false, 256, 256, 80, 2, 1, false, false, 0, 0, true},
    {true, 64, 64, 128, 2, 1, true, false, 0, 0, true},
    {true, 128, 128, 112, 2, 1, true, false, 0, 0, true},
    {true, 192, 192, 112, 2, 1, false, false, 0, 0, true},
    {true, 256, 256, 80, 2, 1, false, false, 0, 0, true},
};
// clang-format on

inline const HopperTile* choose_hopper_tile(bool features, bool paged, int dim, int dim_v,
                                            bool causal, int keys) {
  for (const HopperTile& tile : kHopperTiles)
    if (tile.features == features && (tile.paged || !paged) && dim <= tile.dim &&
        dim_v <= tile.dim_v && keys >= (causal ? tile.causal_keys : tile.keys))
      return &tile;
  return nullptr;
}

constexpr HopperTile hopper_tile(bool features, int dim, int dim_v, int n, int groups) {
  for (const HopperTile& tile : kHopperTiles)
    if (tile.features == features && tile.dim == dim && tile.dim_v == dim_v && tile.n == n &&
        tile.groups == groups)
      return tile;
  return {};
}

}  // namespace jax_baracuda
