// Tiles of the Hopper backward kernel and the choice among them. Host-safe.
#pragma once

#include "attention/backward/params.h"
#include "attention/hopper/config.h"
#include "common/dtype.h"

namespace jax_baracuda {

// How two warpgroups share the work on dQ: by columns, by rows (of 128), or by turns, a row block each. kPair: two CTAs
// share the keys, and the columns of dQ.
enum class QuerySplit { kColumns, kRows, kTurns, kPair };

inline constexpr int kHopperBackwardKeys = 128;  // of a tile
inline constexpr int kHopperConverters =
    2;  // warps of a CTA, beside those that compute, see conversion.cuh

// A CTA, or a pair of them, takes 128 keys, 64 a warpgroup or a CTA, and goes over the query rows `rows` at a time.
struct HopperBackwardTile {
  int dim = 0, dim_v = 0;  // head dims rounded up to these
  int rows = 0;            // 64 or 128
  QuerySplit split = QuerySplit::kRows;
  // Where registers are short: dP is asked for when the weights are there, and the gradients of the scores are computed
  // from weights that have been rounded to 16 bits, as the products take them.
  bool late = false, rounded_weights = false;
  int features = 0;        // see features_of(): one of them, or all
  bool sum_group = false;  // see sum_group.cuh; not in deterministic calls

  constexpr int ctas() const { return split == QuerySplit::kPair ? 2 : 1; }
  constexpr int cta_keys() const { return kHopperBackwardKeys / ctas(); }
  // Columns of a panel in shared memory: a CTA's half of the head dim is whole panels.
  constexpr int panel(int columns) const { return columns / ctas() % 64 == 0 ? 64 : 32; }
  // Counters of a row block: of turns to add to dQ, for a CTA or for the warpgroups of both; or, where these are no pair and
  // turn sums into dQ, two a row of tiles, which has a row block at least.
  constexpr int counters() const { return split == QuerySplit::kPair ? 4 : 2; }
  // Whether it serves every option, which it finds out about as it runs, and deterministic calls, too.
  constexpr bool serves_all() const { return features == kAllFeatures; }
  // Whether its kernels may divide tiles by query rows, see parts.cuh, but for deterministic ones. A bias with rows takes the
  // registers for that.
  constexpr bool divides() const { return ctas() == 1 && !serves_all() && features != kBias; }
  constexpr bool operator==(const HopperBackwardTile& o) const {
    return dim == o.dim && dim_v == o.dim_v && features == o.features;
  }
};

// The compiled tiles, which instantiations.cmake names; the first that fits is taken. Those of one feature are those without
// features otherwise.
constexpr HopperBackwardTile kHopperBackwardTiles[] = {
    {64, 64, 128, QuerySplit::kRows, true, true},
    {96, 96, 64, QuerySplit::kTurns, true, true},
    {128, 128, 64, QuerySplit::kColumns, false, false, 0, true},
    {192, 128, 64, QuerySplit::kPair, false, true},
    {192, 192, 64, QuerySplit::kPair, false, true},
    {256, 256, 64, QuerySplit::kPair, false, true},
    {64, 64, 64, QuerySplit::kTurns, false, false, kAllFeatures},
    {128, 128, 64, QuerySplit::kColumns, false, false, kAllFeatures},
};

// The features of a call as the choice of a tile sees them: tiles for one feature serve no deterministic calls, of biases those
// that all rows share, and not the greatest rates of dropout.
inline int hopper_backward_features(const BackwardParams& p) {
  const int features = features_of(p);
  if (features == 0) return 0;
  if (p.deterministic) return kAllFeatures;
  if (features == kSoftCap || features == kAlibi) return features;
  if (features == kBias && p.bias.row_stride == 0) return kRowBias;
  const bool halves = p.bias.type != BiasType::kF32 && in_pieces(p.bias);
  if (features == kBias && p.dim <= 128 && p.dim_v <= 128 && halves) return features;
  if (features == kDropout && p.dropout_threshold <= kMostThreshold) return features;
  return kAllFeatures;
}

// A tile with features, if it can have them.
constexpr HopperBackwardTile with_features(HopperBackwardTile tile, int features) {
  if (tile.serves_all() != (features == kAllFeatures)) return {};
  tile.features = features;
  return tile;
}

// The tile of a call; its `rows` are 0 if there is none.
inline HopperBackwardTile choose_hopper_backward_tile(const BackwardParams& p) {
  const int features = hopper_backward_features(p);
  for (const HopperBackwardTile& tile : kHopperBackwardTiles)
    if (p.dim <= tile.dim && p.dim_v <= tile.dim_v && with_features(tile, features).rows > 0)
      return with_features(tile, features);
  return {};
}

constexpr HopperBackwardTile hopper_backward_tile(int dim, int dim_v, int features) {
  for (const HopperBackwardTile& tile : kHopperBackwardTiles)
    if (tile.dim == dim && tile.dim_v == dim_v && with_features(tile, features).rows > 0)
      return with_features(tile, features);
  return {};
}

}  // namespace jax_baracuda
