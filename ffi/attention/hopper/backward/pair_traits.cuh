// The shapes of one instantiation of the Hopper backward kernel for pairs of CTAs, and its shared memory.
#pragma once

#include "attention/hopper/backward/traits.cuh"

// 1: dV(i) is asked for before S(i + 1). The buffer of dO is free earlier, and nothing of its own warpgroup is under way
// while it computes weights.
#ifndef JAX_BARACUDA_PAIR_VALUES_FIRST
#define JAX_BARACUDA_PAIR_VALUES_FIRST 0
#endif

namespace jax_baracuda {

// In deterministic calls, between a warpgroup and the thread that keeps its turns: the row block due next is known, its
// turn has come, its dQ was added.
struct QueryGradientTurn {
  uint64_t announced, added;
  uint64_t seen;  // as `come`, for racecheck
  uint32_t come;  // so many
};

template <int kKeys, int kRows, int kQueryStages, int kDOutStages, int kGradientStages>
struct HopperPairControl {
  uint64_t key_full[1], key_empty[1], value_full, value_empty;
  uint64_t query_full[kQueryStages], query_empty[kQueryStages];
  uint64_t dout_full[kDOutStages], dout_empty[kDOutStages];
  uint64_t weights_full, weights_empty;
  uint64_t gradient_full[kGradientStages], gradient_empty[kGradientStages];
  QueryGradientTurn turn[2];
  RowBlock block[kQueryStages];
  RowBlock due[8];  // for each consumer warp, the row block whose dQ it adds next
  // The one that ends, the current one, and the one being loaded.
  KeyTile tile[3];
  RowBlock upcoming;  // that is loaded next
  KeyOrder order;     // of the blocks of keys of the tile that is gone over, the producer's
  TurningWalk<kKeys, kRows> walk;  // the same
  int place;                       // of the pair's tile; the first CTA's counts
};

// A tile of config.h with its element type and the numbers of buffers. CTA c of a pair has keys 64c .. 64c + 63 of the
// tile, and half c of the columns of dQ. In each of them one warpgroup computes weights and dV, the next one their
// gradients and dK, and a further one loads.
template <class T_, int kDim_, int kDimV_, int kQueryStages_, int kDOutStages_, int kOption_ = 0,
          bool kValuesFirst_ = JAX_BARACUDA_PAIR_VALUES_FIRST>
struct HopperPairTraits {
  using T = T_;
  static constexpr HopperBackwardTile kTile = hopper_backward_tile(kDim_, kDimV_, 0);
  static_assert(kTile.split == QuerySplit::kPair);
  static constexpr int kDim = kDim_, kDimV = kDimV_, kRows = kTile.rows;
  static constexpr bool kDivides = false;
  static constexpr int kCtas = 2, kGroups = 2;  // the tile's keys fall in so many groups of 64
  static constexpr int kKeys = kHopperBackwardKeys, kCtaKeys = kKeys / kCtas;
  static constexpr int kCounters = kTile.counters();
  static constexpr bool kRoundedWeights = true;
  static constexpr int kOption = kOption_;  // see option.cuh
  static constexpr bool kBeginsWithDelta = false, kMultipliesPairs = false;
  static constexpr bool kFeatures = false, kInOrder = false, kPasses = false, kSumsBias = false;
  static constexpr bool kValuesFirst = kValuesFirst_;
  static constexpr int kQueryStages = kQueryStages_, kDOutStages = kDOutStages_,
                       kGradientStages = 2;
  static constexpr int kConsumers = 256, kThreads = kConsumers + 128;
  static constexpr int kKeyStages = 1;
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

  static constexpr int kPanel = kTile.panel(kDim), kPanelV = kTile.panel(kDimV);
  using Key = PanelTile<kCtaKeys, kDim, kPanel>;
  using OtherKey = PanelTile<kCtaKeys, kDim / 2, kPanel>;  // of the other CTA, for dQ
  using Value = PanelTile<kCtaKeys, kDimV, kPanelV>;
  using Query = PanelTile<kRows, kDim, kPanel>;
  using DOut = PanelTile<kRows, kDimV, kPanelV>;
  using Gradient = PanelTile<kRows, kKeys>;  // of the scores; a panel is what a CTA computes

  // dQ: the columns of a CTA, and of each of its warpgroups, whole panels.
  static constexpr int kQueryColumns = kDim / 2, kQueryParts = 8;
  static constexpr int part_begin(int part) {
    return part == 0 ? 0 : (OtherKey::kPanels + 1) / 2 * kPanel;
  }
  static constexpr int part_columns(int part) {
    return (part == 0 ? part_begin(1) : kQueryColumns) - part_begin(part);
  }

  using Control = HopperPairControl<kKeys, kRows, kQueryStages, kDOutStages, kGradientStages>;
  static constexpr int kStatBytes = 2 * kRows * 4;  // of a row block: LSE, delta
  static constexpr int kWeightBytes = kCtaKeys * kRows * 2;
  static constexpr int kAllKeyBytes = Key::kBytes + OtherKey::kBytes;
  static constexpr int kOtherKeyOffset = Key::kBytes;
  static constexpr int kValueOffset = kAllKeyBytes;
  static constexpr int kQueryOffset = kValueOffset + Value::kBytes;
  static constexpr int kDOutOffset = kQueryOffset + kQueryStages * Query::kBytes;
  static constexpr int kGradientOffset = kDOutOffset + kDOutStages * DOut::kBytes;
  static constexpr int kWeightOffset = kGradientOffset + kGradientStages * Gradient::kBytes;
  static constexpr int kLseOffset = kWeightOffset + kWeightBytes;
  static constexpr int kDeltaOffset = kLseOffset + kRows * 4;  // every kStatBytes, like the LSE
  static constexpr int kControlOffset = kLseOffset + kQueryStages * kStatBytes;
  static constexpr int kSharedBytes = kControlOffset + sizeof(Control);
  static_assert(kSharedBytes <= 232448, "an SM has 227 KB");
};

}  // namespace jax_baracuda
