// The shapes of one instantiation of the Hopper backward kernel and its shared memory.
#pragma once

#include <type_traits>

#include "attention/backward/walk.cuh"
#include "attention/hopper/backward/config.h"
#include "attention/hopper/backward/params.h"
#include "attention/hopper/backward/row_walk.cuh"
#include "attention/hopper/traits.cuh"

namespace jax_baracuda {

// Named barrier at which the warpgroup for dQ says that it has ended. (1 and 2 are a warpgroup's own, 3 shifts one.)
inline constexpr int kSumsEnded = 4;

// What the producer says of a block of query rows.
enum RowBlockFlags {
  kMaskedForFirstGroup = 1,  // << group: positions hide some of the block from the group's keys
  kSegmentMaskedRows = 1 << 8,
  kPaddedRows = 1 << 9,  // rows past the sequence's last row may hold anything
  kLastRows = 1 << 10,
  kHiddenFromFirstGroup = 1 << 11,  // << group: positions hide all of the block from its keys
};

struct RowBlock {
  int first_row, flags;
  int block;  // in the workspace
  int turn;   // how many blocks of keys add to its dQ before; deterministic calls only
  int head;   // query head
};

// In deterministic calls, what consumers hand to a thread that adds dQ: the row block, -1 at the end.
struct QueryGradientSum {
  uint64_t full;
  int block, turn;
};

// Where the main kernel turns sums into dQ, what consumers tell a thread: the row of a tile whose terms they have added, -1 at
// the end.
struct AddedTile {
  uint64_t full, empty;
  int row;
  int parts;  // of it
};

// The row block that a warp turns from sums into dQ, see conversion.cuh.
struct QueryGradientPlace {
  float* sum;
  int64_t to;        // where the first row goes in dQ, in elements
  int row_of_tiles;  // whose sum it is
  int cleared;  // the same of the row block before, of whose sum it is yet to be said that it is clear, or -1
  int rows, counted;  // that there are, and that are not zeros
};

enum class KeyTileKind {
  kNone,    // all tiles are done
  kUnseen,  // by every row: nothing was loaded
  kSeen
};

// A block of keys.
struct KeyTile {
  Sequence sequence;
  Visibility visible;
  int kv_head, first_key;
  int padded;  // keys past the sequence's last key may hold anything
  KeyTileKind kind;
  int part;              // among the parts of divided tiles, see parts.cuh; -1: all of the tile
  int q_begin, k_begin;  // the sequence's first row and key within its pack
  float* sums;           // where block 0 of the workspace would have its sum
  int first_block;       // of the group's first head, in the workspace
  // Rows that see all keys of a warpgroup, and those that may see one.
  Visibility::Rows whole[2], some[2];
};

template <int kKeys, int kRows, int kKeyStages, int kQueryStages, int kDOutStages,
          int kGradientStages, int kAdders, int kSumBuffers>
struct HopperBackwardControl {
  uint64_t key_full[kKeyStages], key_empty[kKeyStages], value_full, value_empty;
  uint64_t query_full[kQueryStages], query_empty[kQueryStages];
  uint64_t dout_full[kDOutStages], dout_empty[kDOutStages];
  uint64_t gradient_full[kGradientStages], gradient_empty[kGradientStages];
  RowBlock block[kQueryStages];
  QueryGradientSum sum[kAdders];
  uint64_t sum_empty[kSumBuffers];
  // The last row blocks by their numbers, for consumers that finish dQ when Q's place has another one. With features: for
  // each consumer warp, the last one.
  RowBlock recent[8];
  uint32_t loaded;  // so many row blocks
  int left
      [8];  // for each consumer warp, the row block whose dQ it has left in shared memory, or -1
  // The one that ends, the current one, and the one being loaded.
  KeyTile tile[3];
  RowBlock upcoming;  // that is loaded next
  KeyOrder order;     // of the blocks of keys of the tile that is gone over, the producer's
  TurningWalk<kKeys, kRows> walk;  // the same
  AddedTile added[2];              // by warpgroups
  uint64_t place_full[8 + kHopperConverters][4];
  QueryGradientPlace place[8 + kHopperConverters];
};

// A tile of config.h with its element type and the numbers of buffers. Two warpgroups compute, a further one loads; with
// kSumGroup_, one more computes dQ for both.
template <class T_, int kDim_, int kDimV_, int kRows_, QuerySplit kSplit_, bool kLate_ = false,
          bool kRoundedWeights_ = false, int kFeatures_ = 0, bool kSumGroup_ = false>
struct HopperBackwardTraits {
  using T = T_;
  static constexpr int kDim = kDim_, kDimV = kDimV_, kRows = kRows_, kGroups = 2;
  static constexpr int kKeys = kHopperBackwardKeys;
  static constexpr int kCtas = 1, kCtaKeys = kKeys;
  static constexpr int kCounters = 2;  // see HopperBackwardTile
  static constexpr QuerySplit kSplit = kSplit_;
  static constexpr bool kSumGroup = kSumGroup_;  // see sum_group.cuh
  static constexpr bool kLate = kLate_ || kSumGroup;
  static constexpr bool kRoundedWeights = kRoundedWeights_ || kSumGroup;
  static constexpr bool kFeatures = kFeatures_ == kAllFeatures;  // see has_features()
  static constexpr int kOption = kFeatures ? 0 : kFeatures_;     // the only one, see option.cuh
  // Whether what dP - delta is multiplied with is not the weights, and whether a lane leaves it in shared memory until then.
  static constexpr bool kFactors = kOption == kSoftCap || kOption == kDropout;
  static constexpr bool kSharedFactors = kFactors && kSumGroup;
  // Whether dS = P (dP - delta) multiplies pairs of bf16: the difference is rounded, too, for half of the instructions. (Not
  // in f16, in which dP may be out of range where dS is not.)
  static constexpr bool kMultipliesPairs =
      std::is_same_v<T, __nv_bfloat16> && kRoundedWeights && !kFeatures;
  // Whether dP begins with -delta, not 0: between dP and dS nothing is loaded from shared memory, which products keep busy, nor
  // subtracted. Where another warpgroup computes dQ, the load before dP costs more; what dropout drops needs delta alone.
  static constexpr bool kBeginsWithDelta = kLate && !kSumGroup && !kFeatures && kOption != kDropout;
  // Where there is room for it, the next keys are loaded while these are in use still.
  static constexpr int kKeyStages = kDim <= 96 && !kFeatures && kOption != kBias ? 2 : 1;
  static constexpr int kQueryStages = kDim <= 96 && !kFeatures ? 2 : 3;
  static constexpr int kDOutStages = 2, kGradientStages = 2;
  static constexpr bool kInOrder = false;   // see InOrder
  static constexpr bool kSumsBias = false;  // see WithBiasSums
  // Whether products of half of a row block lie between what is computed, see consumer.cuh.
  static constexpr bool kInterleaves = kRows == 64 && !kFeatures;
  // Whether warpgroups pass over a first block of rows that see none of their keys.
  static constexpr bool kPasses = kRows == 64 && !kFeatures;
  // Whether it can turn sums into dQ itself. With features there are no registers for that,
  static constexpr bool kConverts = !kFeatures;
  // Whether CTAs may share a tile by its query rows, see parts.cuh: HopperBackwardTile::divides().
  static constexpr bool kDivides = !kFeatures && kOption != kBias;
  // Whether a warp has the first 16 columns of its values in registers.
  static constexpr bool kHoldsValues =
      kSumGroup && kDimV == 128 && kOption != kBias && kOption != kRowBias;
  static constexpr int kConsumers = 128 * kGroups;
  static constexpr int kSumWarps = kSumGroup ? 4 : 0;
  static constexpr int kThreads = kConsumers + 128 + 32 * kSumWarps;
  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = kSumGroup ? 208 : 240;
  static constexpr int kSumRegisters =
      512 - kProducerRegisters - 2 * kConsumerRegisters;  // of the 512 of four threads

  using Key = PanelTile<kKeys, kDim>;
  using Value = PanelTile<kKeys, kDimV>;
  using Query = PanelTile<kRows, kDim>;
  using DOut = PanelTile<kRows, kDimV>;
  using Gradient = PanelTile<kRows, kKeys>;  // of the scores; a panel is what a warpgroup writes

  // dQ: what a warpgroup computes, 64 rows of it, and the bytes that a warp adds.
  static_assert(kRows == (kSplit == QuerySplit::kRows ? 128 : 64));
  static constexpr int kQueryColumns = kSplit == QuerySplit::kColumns ? kDim / kGroups : kDim;
  static constexpr int kQueryParts = kSplit == QuerySplit::kTurns ? 4 : 8;  // of a row block
  static constexpr int kWarpQueryBytes = 16 * kQueryColumns * 4;
  static_assert(kSplit != QuerySplit::kColumns || kQueryColumns % Key::kColumns == 0 ||
                Key::kPanels == 1);

  // A row block's part of dQ, all of it, and how many of them fit; where warpgroups take turns, each has its own.
  static constexpr int kSumBytes = kQueryParts * kWarpQueryBytes;
  static constexpr int kSumBuffers = kSplit == QuerySplit::kTurns ? 2 : 1;
  // Buffers of kWarpQueryBytes in all. The warpgroup for dQ has one a warp: with two it is slower.
  static constexpr int kWarpBuffers = kSumGroup ? kSumWarps : kSumBuffers * kQueryParts;
  // See conversion.cuh: bytes of a load, and the loads under way that there is room for, in the buffers of a warp of the
  // consumers and of one of the loading warpgroup.
  static constexpr int kConversionBytes = 16 * 32 * 4;
  static constexpr int kOwnConversions = kWarpQueryBytes / kConversionBytes;
  static constexpr int kConversions =
      kSumGroup && !kFactors && kOption != kBias ? 4 : kOwnConversions;
  // Threads that add dQ in deterministic calls, a row block each in turn.
  static constexpr int kAdders = kSplit == QuerySplit::kTurns ? 2 : 3;

  using Control = HopperBackwardControl<kKeys, kRows, kKeyStages, kQueryStages, kDOutStages,
                                        kGradientStages, kAdders, kSumBuffers>;
  static constexpr int kAllKeyBytes = Key::kBytes;
  static constexpr int kValueOffset = kKeyStages * Key::kBytes;
  static constexpr int kQueryOffset = kValueOffset + Value::kBytes;
  static constexpr int kDOutOffset = kQueryOffset + kQueryStages * Query::kBytes;
  static constexpr int kGradientOffset = kDOutOffset + kDOutStages * DOut::kBytes;
  static constexpr int kSumOffset = kGradientOffset + kGradientStages * Gradient::kBytes;
  static constexpr int kZeroOffset = kSumOffset + kWarpBuffers * kWarpQueryBytes +
                                     kHopperConverters * kConversions * kConversionBytes;
  static constexpr int kLseOffset = kZeroOffset + kConversionBytes;
  static constexpr int kDeltaOffset = kLseOffset + kQueryStages * kRows * 4;
  static constexpr int kFactorOffset = kDeltaOffset + kDOutStages * kRows * 4;
  // Of a warp: see kSharedFactors and WarpBias.
  static constexpr int kFactorBytes = kOption == kBias ? 2048 : kRows / 16 * 512;
  static constexpr int kControlOffset =
      kFactorOffset + (kSharedFactors || kOption == kBias ? kConsumers / 32 * kFactorBytes : 0);
  static constexpr int kSharedBytes = kControlOffset + sizeof(Control);
  static_assert(kSharedBytes <= 232448, "an SM has 227 KB");
};

// The same where dQ gets its terms in one order: deterministic calls.
template <class Traits>
struct InOrder : Traits {
  static constexpr bool kInOrder = true, kConverts = false, kPasses = false, kDivides = false;
};

// Where row block number `count` of a CTA has its dO and dS, and which phase of dS' barriers is its own.
template <class Traits>
struct RowBlockStages {
  static __device__ __forceinline__ int dout_stage(uint32_t count) {
    return count % Traits::kDOutStages;
  }
  static __device__ __forceinline__ int gradient_stage(uint32_t count) {
    return count % Traits::kGradientStages;
  }
  static __device__ __forceinline__ int gradient_parity(uint32_t count) {
    return count / Traits::kGradientStages & 1;
  }
};

// The same where the gradient of a bias that all rows share is wanted, see bias_sums.cuh.
template <class Traits>
struct WithBiasSums : Traits {
  static constexpr bool kSumsBias = true, kDivides = false;
};

// Whether a kernel adds in order. Without features it knows as it is compiled, and its loops hold nothing of the other way.
template <class Traits>
__device__ __forceinline__ bool adds_in_order(const BackwardParams& p) {
  return Traits::kFeatures ? p.deterministic : Traits::kInOrder;
}

// What sums of gradients are to be multiplied with: dropout leaves that to the end, see option.cuh.
template <class Traits>
__device__ __forceinline__ float gradient_scale(const AttentionProblem& p, float scale) {
  return Traits::kOption == kDropout ? scale * p.dropout_scale : scale;
}

}  // namespace jax_baracuda
