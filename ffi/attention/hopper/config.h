// Tiles of the Hopper forward kernel and the choice among them. Host-safe.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/params.h"
#include "common/dtype.h"

namespace jax_baracuda {

enum class TileUse {
  kAny,
  kTwoCtas,  // two CTAs share an SM, and one's softmax, start and end overlap with the other's products
  kFewTiles,  // a tile's rows may be those of all heads of a group, and its keys may be split over CTAs
  kPages,  // keys in pages; without features a tile's rows may be those of several heads of a group
  kPairs,  // tiles that all see all keys: a cluster of two CTAs has two of a head, and each loads half of a block for both
};

// A CTA has `groups` warpgroups of 64 query rows each and goes over the keys n at a time.
struct HopperTile {
  int features;    // a Feature by itself, kAllFeatures for any of them, or 0
  int dim, dim_v;  // head dims rounded up to these
  int n, groups;
  int query_stages;       // 2: the next tile's queries are loaded while this one is at work
  bool pingpong;          // the warpgroups issue their products in turns
  bool overlap;           // softmax while P.V of the same warpgroup runs: takes registers
  int keys, causal_keys;  // for as many keys or more, without and with a causal mask
  TileUse use = TileUse::kAny;

  constexpr int m() const { return 64 * groups; }
  constexpr int ctas() const { return use == TileUse::kTwoCtas ? 2 : 1; }  // of an SM
  // Warpgroups pass over blocks that they see nothing of: requests in pages may have rows for one of them alone, and of short
  // causal sequences the diagonal is a large part. Elsewhere it costs more than it saves; with features registers are short.
  constexpr bool skips() const {
    return use == TileUse::kTwoCtas || (use == TileUse::kPages && !features);
  }
  // The output goes through shared memory and from there by the copy engine: less for the computing warps to do at the end
  // of a tile. Where shared memory is full, or panels are not 64 columns wide, they store it themselves.
  constexpr bool staged() const {
    const bool simple = !(features & (kBias | kRowBias | kFloatBias));
    const bool registers =
        groups < 3 || (query_stages == 1 && (!features || features == kBoundedCap));
    const bool room = dim <= 128 || n <= 64;
    const bool one_head = use != TileUse::kFewTiles && use != TileUse::kPages;
    return one_head && dim == dim_v && dim % 64 == 0 && room && simple && registers;
  }
  constexpr bool operator==(const HopperTile& o) const {
    return features == o.features && dim == o.dim && dim_v == o.dim_v && n == o.n &&
           groups == o.groups && query_stages == o.query_stages && use == o.use;
  }
};

// The compiled tiles, which instantiations.cmake names; the first that fits is taken. Long blocks and many rows need less
// shared memory traffic and fewer barriers a product; short sequences and the diagonal waste less of small ones.
// clang-format off
constexpr HopperTile kHopperTiles[] = {
    {0, 64, 64, 128, 3, 1, true, true, 1024, 8192},
    {0, 64, 64, 64, 2, 1, false, false, 0, 0, TileUse::kTwoCtas},
    {0, 96, 96, 128, 2, 1, false, true, 1024, 2048},
    {0, 96, 96, 128, 2, 2, true, false, 0, 0},
    {0, 128, 128, 128, 2, 1, false, true, 0, 0},
    {0, 192, 128, 128, 2, 1, false, true, 0, 0},
    {0, 192, 192, 112, 2, 1, false, true, 0, 0},
    {0, 256, 256, 80, 2, 1, false, false, 1024, 2048},
    {0, 256, 256, 64, 2, 1, false, true, 0, 0},
    {kBoundedCap, 64, 64, 128, 3, 1, true, false, 2048, 16384},
    {kBoundedCap, 64, 64, 64, 2, 1, false, false, 0, 0, TileUse::kTwoCtas},
    {kBoundedCap, 128, 128, 128, 2, 1, false, true, 0, 0},
    {kSoftCap, 64, 64, 64, 2, 1, false, false, 0, 0, TileUse::kTwoCtas},
    {kSoftCap, 128, 128, 128, 2, 1, false, true, 0, 0},
    {kAlibi, 64, 64, 128, 3, 1, true, false, 1024, 2048},
    {kAlibi, 64, 64, 64, 2, 1, false, false, 0, 0, TileUse::kTwoCtas},
    {kAlibi, 128, 128, 128, 2, 1, false, true, 0, 0},
    {kBias, 64, 64, 128, 3, 1, true, false, 512, 2048},
    {kBias, 64, 64, 128, 2, 1, false, false, 0, 0},
    {kBias, 128, 128, 128, 2, 1, false, true, 0, 0},
    {kFloatBias, 64, 64, 128, 2, 1, false, false, 0, 0},
    {kFloatBias, 128, 128, 128, 2, 1, false, true, 0, 0},
    {kRowBias, 64, 64, 128, 3, 1, true, false, 1024, 4096},
    {kRowBias, 64, 64, 64, 2, 1, false, false, 0, 0, TileUse::kTwoCtas},
    {kRowBias, 128, 128, 128, 2, 1, false, true, 0, 0},
    {kDropout, 64, 64, 128, 2, 1, false, true, 1024, 2048},
    {kDropout, 64, 64, 64, 2, 1, false, false, 0, 0, TileUse::kTwoCtas},
    {kDropout, 128, 128, 128, 2, 1, false, true, 0, 0},
    {kAllFeatures, 64, 64, 128, 2, 1, false, true, 0, 0},
    {kAllFeatures, 128, 128, 112, 2, 1, false, true, 0, 0},
    {kAllFeatures, 192, 192, 112, 2, 1, false, false, 0, 0},
    {kAllFeatures, 256, 256, 80, 2, 1, false, false, 0, 0},
    {0, 64, 64, 64, 2, 1, true, false, 0, 0, TileUse::kFewTiles},
    {0, 64, 64, 128, 2, 1, true, false, 0, 0, TileUse::kFewTiles},
    {0, 128, 128, 128, 2, 1, true, true, 0, 0, TileUse::kFewTiles},
    {0, 192, 128, 128, 2, 1, false, false, 0, 0, TileUse::kFewTiles},
    {0, 256, 256, 64, 2, 1, false, true, 0, 0, TileUse::kFewTiles},
    {0, 256, 256, 80, 2, 1, false, false, 0, 0, TileUse::kFewTiles},
    {0, 128, 128, 128, 2, 1, false, true, 0, 0, TileUse::kPairs},
    {0, 64, 64, 128, 2, 1, true, false, 0, 0, TileUse::kPages},
    {0, 96, 96, 128, 2, 1, true, false, 0, 0, TileUse::kPages},
    {0, 128, 128, 128, 2, 1, true, true, 0, 0, TileUse::kPages},
    {0, 192, 192, 112, 2, 1, false, false, 0, 0, TileUse::kPages},
    {0, 256, 256, 80, 2, 1, false, false, 0, 0, TileUse::kPages},
    {kAllFeatures, 64, 64, 128, 2, 1, true, false, 0, 0, TileUse::kPages},
    {kAllFeatures, 128, 128, 112, 2, 1, true, false, 0, 0, TileUse::kPages},
    {kAllFeatures, 192, 192, 112, 2, 1, false, false, 0, 0, TileUse::kPages},
    {kAllFeatures, 256, 256, 80, 2, 1, false, false, 0, 0, TileUse::kPages},
};
// clang-format on

// What a feature is that only some calls have tiles for.
inline int wider_feature(int feature) { return feature == kBoundedCap ? kSoftCap : feature; }

// Whether a tile serves these of the features: there are tiles for one of them and for all.
inline bool serves(const HopperTile& tile, int features) {
  return tile.features == features || tile.features == wider_feature(features) ||
         (features && tile.features == kAllFeatures);
}

inline const HopperTile* choose_hopper_tile(int features, int dim, int dim_v, bool causal,
                                            int keys) {
  for (const HopperTile& tile : kHopperTiles)
    if (serves(tile, features) && (tile.use == TileUse::kAny || tile.use == TileUse::kTwoCtas) &&
        dim <= tile.dim && dim_v <= tile.dim_v && keys >= (causal ? tile.causal_keys : tile.keys))
      return &tile;
  return nullptr;
}

inline const HopperTile* choose_paged_tile(int features, int dim) {
  for (const HopperTile& tile : kHopperTiles)
    if (tile.use == TileUse::kPages && serves(tile, features) && dim <= tile.dim) return &tile;
  return nullptr;
}

// The tile of another use that adds a row up as `usual` does: whether it is taken depends on the batch, and unless keys
// are split the bits of a row must not.
inline const HopperTile* tile_like(const HopperTile& usual, TileUse use) {
  for (const HopperTile& tile : kHopperTiles)
    if (tile.use == use && !usual.features && tile.dim == usual.dim && tile.dim_v == usual.dim_v &&
        tile.n == usual.n)
      return &tile;
  return nullptr;
}

constexpr HopperTile hopper_tile(int features, int dim, int dim_v, int n, int groups,
                                 int query_stages, TileUse use) {
  for (const HopperTile& tile : kHopperTiles)
    if (tile.features == features && tile.dim == dim && tile.dim_v == dim_v && tile.n == n &&
        tile.groups == groups && tile.query_stages == query_stages && tile.use == use)
      return tile;
  return {};
}

// The choice depends on shapes alone, so that the workspace can be sized where a call is traced: it counts on as many
// CTAs as an H100 or H200 has SMs.
inline constexpr int kPlannedCtas = 132;
inline constexpr int kMaxKeySplits = 32;
inline constexpr int kLeastSplitKeys = 256;  // of a split: shapes.py has the same number
inline constexpr int kCombineCost = 3;       // of the second kernel, in blocks of keys

// What serves a call: a tile, `packed` heads in the rows of one, the keys of one split over `splits` CTAs.
struct HopperPlan {
  const HopperTile* tile = nullptr;
  int packed = 1, splits = 1;

  int rows() const { return tile->m() / packed; }  // of a sequence, in a tile
  // Rows of tiles: one a sequence, head or group of heads, and split.
  int64_t lines(const AttentionProblem& p) const {
    return int64_t{p.packs} * p.sequences * (p.heads / packed) * splits;
  }
  int64_t tiles(const AttentionProblem& p) const { return (p.max_q + rows() - 1) / rows(); }
  // Tiles of all lines. Of requests in pages only as many as there are rows for, however uneven those are.
  int64_t total(const AttentionProblem& p) const {
    if (!p.pages.indptr) return tiles(p) * lines(p);
    return (int64_t{p.q_rows} / rows() + p.sequences) * (p.heads / packed);
  }
  // The most keys that a tile sees.
  int64_t keys(const AttentionProblem& p) const {
    const int right = p.causal ? 0 : p.window_right;
    if (p.window_left < 0 || right < 0) return p.max_k;
    return std::min<int64_t>(p.max_k, int64_t{p.window_left} + right + 1 + rows() + p.sink_tokens);
  }
  // Time of the call in blocks of keys, were all tiles equal.
  int64_t cost(const AttentionProblem& p) const {
    const int64_t rounds = (tiles(p) * lines(p) + kPlannedCtas - 1) / kPlannedCtas;
    const int64_t blocks = (keys(p) + tile->n - 1) / tile->n;
    return rounds * ((blocks + splits - 1) / splits) + (splits > 1 ? kCombineCost : 0);
  }
};

// Outputs of one split, and their LSE, in float32.
inline int64_t split_bytes(const AttentionProblem& p) {
  return int64_t{p.packs} * p.q_rows * p.heads * (p.dim_v + 1) * 4;
}

// How many heads of a group share a tile of m rows: as many as leave nine tenths of it in use, for all lengths. A request
// that decodes then reads its keys once for so many heads.
inline int choose_packed_heads(int group, int m) {
  int packed = 1;
  for (int heads = 2; heads <= std::min(group, m); ++heads)
    if (group % heads == 0 && 10 * (m / heads * heads) >= 9 * m) packed = heads;
  return packed;
}

// The plan for keys in pages, which are never split.
inline HopperPlan choose_paged_plan(const AttentionProblem& p, int features) {
  HopperPlan plan;
  plan.tile = choose_paged_tile(features, std::max(p.dim, p.dim_v));
  if (plan.tile && !features) plan.packed = choose_packed_heads(p.group, plan.tile->m());
  return plan;
}

// The largest threshold that random bits are compared with as float16 numbers: infinity.
inline constexpr uint32_t kMostThreshold = 0x7c00;

// Whether a bias is of numbers that 16 bytes of a row can be copied of at a time.
inline bool in_pieces(const AttentionBias& bias) {
  const bool floats = bias.type == BiasType::kF32;
  const bool halves = bias.type == BiasType::kF16 || bias.type == BiasType::kBF16;
  const int64_t strides = bias.row_stride | bias.head_stride | bias.sequence_stride;
  return (halves || floats) &&
         (reinterpret_cast<uintptr_t>(bias.data) % 16 | strides % (floats ? 4 : 8)) == 0;
}

// Soft caps up to this one leave weights from 2^-81 to 2^81 without maxima: numbers of bfloat16, and 2^46 of them times a value are
// one of float32.
inline constexpr float kMostBoundedCap = 56.0f;

// The features that a call has, as the choice of a tile sees them. A bias of all rows has a tile, whatever its elements; another one
// if boxes can be made of it.
inline int hopper_features(const AttentionProblem& p, DType dtype) {
  const int features = features_of(p);
  if (features == kSoftCap && dtype == DType::kBF16 && p.soft_cap <= kMostBoundedCap)
    return kBoundedCap;
  if (features == kBias && !p.bias.row_stride) return kRowBias;
  if (features == kBias && !in_pieces(p.bias)) return kAllFeatures;
  if (features == kBias && p.bias.type == BiasType::kF32) return kFloatBias;
  if (features == kDropout && p.dropout_threshold > kMostThreshold) return kAllFeatures;
  return features;
}

// For as many keys or more, a pair of CTAs costs less energy than two: half the reads of the L2 cache.
inline constexpr int kLeastPairKeys = 4096;

// Whether the plan's tiles come in pairs, all of whose rows are there and see all keys.
inline bool suits_pairs(const AttentionProblem& p, const HopperPlan& plan) {
  const bool masked = p.causal || p.window_left >= 0 || p.window_right >= 0 || p.query_segments;
  const bool uneven = p.cu_seqlens_q || p.query_lengths || p.kv_lengths;
  return !masked && !uneven && p.max_k >= kLeastPairKeys && plan.tiles(p) % 2 == 0 &&
         tile_like(*plan.tile, TileUse::kPairs);
}

// The plan of a problem with these features; without a tile where the kernel does not take it. `spare`: bytes of the
// workspace for splits.
inline HopperPlan choose_hopper_plan(const AttentionProblem& p, int features, int64_t spare) {
  if (p.pages.indptr) return choose_paged_plan(p, features);
  HopperPlan plan;
  plan.tile = choose_hopper_tile(features, p.dim, p.dim_v, p.causal, p.max_k);
  HopperPlan best;
  best.tile = plan.tile ? tile_like(*plan.tile, TileUse::kFewTiles) : nullptr;
  if (!best.tile || p.max_q < 1 || p.max_k < 1) return plan;
  HopperPlan grouped = best;
  grouped.packed = p.group;
  if (p.group <= best.tile->m() &&
      grouped.tiles(p) * grouped.lines(p) < best.tiles(p) * best.lines(p))
    best = grouped;
  // Where sequences share a pack, nobody knows afterwards which sequence a row was of.
  const bool sink_each = p.sinks && p.sinks_stride && p.cu_seqlens_q;
  const int64_t most = std::min<int64_t>(
      {kMaxKeySplits, p.max_k / kLeastSplitKeys, spare / std::max<int64_t>(split_bytes(p), 1),
       kPlannedCtas / std::max<int64_t>(best.tiles(p) * best.lines(p), 1)});
  for (HopperPlan split = best; !sink_each && split.splits < most;) {
    ++split.splits;
    if (split.cost(p) < best.cost(p)) best = split;
  }
  // The usual tiles are better known: they stay where little is gained.
  if (4 * best.cost(p) < 3 * plan.cost(p)) return best;
  if (suits_pairs(p, plan)) plan.tile = tile_like(*plan.tile, TileUse::kPairs);
  return plan;
}

}  // namespace jax_baracuda
