// The shapes of one instantiation of the Hopper backward kernel and its shared memory.
#pragma once

#include "attention/backward/walk.cuh"
#include "attention/hopper/backward/params.h"
#include "attention/hopper/traits.cuh"

namespace jax_baracuda {

// What the producer says of a block of query rows.
enum RowBlockFlags {
  kMaskedForFirstGroup = 1,    // << group: positions hide some of the block from the group's keys
  kSegmentMaskedRows = 1 << 8,
  kPaddedRows = 1 << 9,  // rows past the sequence's last row may hold anything
  kLastRows = 1 << 10,
};

struct RowBlock {
  int first_row, flags;
  int block;  // in the workspace
};

// A block of keys.
struct KeyTile {
  Sequence sequence;
  Visibility visible;
  int kv_head, first_key;
  int padded;  // keys past the sequence's last key may hold anything
  int valid;   // 0: all tiles are done
  int q_begin, k_begin;        // the sequence's first row and key within its pack
  int first_block;             // of the group's first head, in the workspace
  Visibility::Rows whole[2];  // rows that see all keys of a warpgroup
};

template <int kKeys, int kRows, int kQueryStages, int kDOutStages, int kGradientStages>
struct HopperBackwardControl {
  uint64_t key_full, key_empty, value_full, value_empty;
  uint64_t query_full[kQueryStages], query_empty[kQueryStages];
  uint64_t dout_full[kDOutStages], dout_empty[kDOutStages];
  uint64_t gradient_full[kGradientStages], gradient_empty[kGradientStages];
  RowBlock block[kQueryStages];
  // The one that ends, the current one, and the one being loaded.
  KeyTile tile[3];
  Walk<kKeys, kRows> walk;  // the producer's
};

// Two warpgroups have 64 keys each; a further warpgroup loads. kRows query rows at a time: 64, and each warpgroup
// computes half of the columns of dQ, or 128, and each computes half of the rows.
template <class T_, int kDim_, int kDimV_, int kRows_, int kQueryStages_ = 3, int kDOutStages_ = 2,
          int kGradientStages_ = 2, bool kLate_ = false, bool kRoundedWeights_ = false,
          int kPolynomial_ = 0, int kAblate_ = 0>
struct HopperBackwardTraits {
  using T = T_;
  static constexpr int kDim = kDim_, kDimV = kDimV_, kRows = kRows_, kGroups = 2;
  static constexpr int kKeys = 64 * kGroups;
  static constexpr int kQueryStages = kQueryStages_, kDOutStages = kDOutStages_,
                       kGradientStages = kGradientStages_;
  // dP comes after the weights: it needs their scores' registers.
  static constexpr bool kLate = kLate_;
  // Gradients of the scores are computed from weights that have been rounded to T.
  static constexpr bool kRoundedWeights = kRoundedWeights_;
  static constexpr int kPolynomial = kPolynomial_, kAblate = kAblate_;
  static constexpr int kConsumers = 128 * kGroups, kThreads = kConsumers + 128;
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

  using Key = PanelTile<kKeys, kDim>;
  using Value = PanelTile<kKeys, kDimV>;
  using Query = PanelTile<kRows, kDim>;
  using DOut = PanelTile<kRows, kDimV>;
  using Gradient = PanelTile<kRows, kKeys>;  // of the scores; a panel is what a warpgroup writes
  static_assert(kRows == 64 || kRows == 128);

  // dQ: what a warpgroup computes, and the bytes that a warp adds.
  static constexpr bool kSplitColumns = kRows == 64;
  static constexpr int kQueryColumns = kSplitColumns ? kDim / kGroups : kDim;
  static constexpr int kWarpQueryBytes = 16 * kQueryColumns * 4;
  static_assert(!kSplitColumns || kQueryColumns % Key::kColumns == 0 || Key::kPanels == 1);

  using Control = HopperBackwardControl<kKeys, kRows, kQueryStages, kDOutStages, kGradientStages>;
  static constexpr int kValueOffset = Key::kBytes;
  static constexpr int kQueryOffset = kValueOffset + Value::kBytes;
  static constexpr int kDOutOffset = kQueryOffset + kQueryStages * Query::kBytes;
  static constexpr int kGradientOffset = kDOutOffset + kDOutStages * DOut::kBytes;
  static constexpr int kSumOffset = kGradientOffset + kGradientStages * Gradient::kBytes;
  static constexpr int kLseOffset = kSumOffset + kRows * kDim * 4;
  static constexpr int kDeltaOffset = kLseOffset + kQueryStages * kRows * 4;
  static constexpr int kControlOffset = kDeltaOffset + kDOutStages * kRows * 4;
  static constexpr int kSharedBytes = kControlOffset + sizeof(Control);
  static_assert(kSharedBytes <= 232448, "an SM has 227 KB");
};

}  // namespace jax_baracuda
