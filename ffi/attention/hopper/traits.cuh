// The shapes of one instantiation of the Hopper forward kernel and its shared memory.
#pragma once

#include <type_traits>

#include "attention/hopper/config.h"
#include "attention/hopper/params.h"
#include "attention/key_blocks.cuh"
#include "attention/score.cuh"
#include "attention/sequence.cuh"
#include "device/cluster.cuh"
#include "device/mbarrier.cuh"
#include "device/wgmma.cuh"

namespace jax_baracuda {

// What the producer says of a block of keys.
enum BlockFlags {
  kFirstBlock = 1,  // of a tile of query rows
  kLastBlock = 2,
  kEndMasked = 4,       // the last keys of it are hidden from some rows
  kPositionMasked = 8,  // the same, and other keys, too
  kSegmentMasked = 16,
  kMasked = kEndMasked | kPositionMasked | kSegmentMasked,
  kPaddedBlock = 32,   // rows past the sequence's last key may hold anything
  kNoBlock = 64,       // all tiles are done
  kForeignRows = 128,  // the tile has rows past the end of its queries, which may hold anything
  kHidden = 1
      << 8,  // of the first blocks of a tile or of all, for warpgroup g shifted by g: it sees nothing of the block
};

struct KeyBlock {
  int first_key, flags;
};

// Where a block of keys lies: that of its box, or in pages of a lane's box.
struct BoxPlace {
  int row = -1, head, pack;  // in pages: row of the page, head, page
};

// A tile of query rows.
struct QueryTile {
  Sequence sequence;
  Visibility visible;
  int head, first_row;
};
struct ModifiedQueryTile : QueryTile {
  ScoreModifier modify;
};
struct SplitQueryTile : QueryTile {
  int split;  // head is the first of those in the tile
};

template <int kQueryStages, int kStages, int kLanes, class QueryTile>
struct HopperControl {
  // At most three are in use: the one that ends, the current, the one being loaded.
  static constexpr int kTiles = 4;

  uint64_t query_full[kQueryStages], query_empty[kQueryStages];
  uint64_t key_full[kStages], key_empty[kStages];
  uint64_t value_full[kStages], value_empty[kStages];
  KeyBlock block[kStages];
  QueryTile tile[kTiles];
  BoxPlace box[kStages][kLanes];  // in pages: for the warp that loads the values
  uint64_t bias_full[4],
      bias_empty[4];              // of a block, or of the panels of the only block of float32
  uint64_t record_full[kStages];  // for the warp that brings a bias of all rows
};

// kGroups warpgroups have 64 query rows each; a further warpgroup loads.
template <class T_, int kDim_, int kDimV_, int kN_, int kGroups_, int kQueryStages_,
          bool kPingpong_, bool kOverlap_, int kFeatures_, TileUse kUse_, bool kSkips_,
          bool kStaged_>
struct HopperTraits {
  using T = T_;
  static constexpr int kDim = kDim_, kDimV = kDimV_, kN = kN_, kGroups = kGroups_;
  static constexpr int kM = 64 * kGroups;
  static constexpr int kQueryStages = kQueryStages_;
  static constexpr int kFeatures = kFeatures_;  // a Feature that scores go through alone, or all
  static constexpr bool kAnything = kFeatures == kAllFeatures;  // which, is looked up
  static constexpr bool kRowBiased = kFeatures == kRowBias;
  static constexpr bool kFloatBiased = kFeatures == kFloatBias;
  static constexpr bool kBiased = kFeatures == kBias || kFloatBiased;
  // A block of the bias is there when its keys are, and gone with them: the loading warp has no registers for more barriers.
  static constexpr bool kBiasWithKeys = kFeatures == kBias && kGroups_ == 3;
  static constexpr bool kBounded = kFeatures == kBoundedCap;  // see CapExponents
  static constexpr bool kModifies = kFeatures != 0 && !kRowBiased && !kBounded;
  static constexpr bool kOverlap = kOverlap_;
  static constexpr bool kPingpong = kPingpong_;  // warpgroups issue their products in turns
  static constexpr bool kSkips = kSkips_;        // they pass over blocks that they see nothing of
  // They pass over tiles that they have no rows of: of three warpgroups the last ones often are past a sequence's end.
  static constexpr bool kIdles = kGroups == 3 && kQueryStages == 1 && !kModifies;
  static constexpr bool kTwoCtas = kUse_ == TileUse::kTwoCtas;
  static constexpr bool kFewTiles = kUse_ == TileUse::kFewTiles;
  static constexpr bool kPaged = kUse_ == TileUse::kPages;
  static constexpr bool kPairs = kUse_ == TileUse::kPairs;
  static_assert(!kPairs || !(kFeatures || kSkips));
  static constexpr bool kPacked = kFewTiles || (kPaged && !kFeatures);  // rows of several heads
  static_assert(!kFewTiles || !(kFeatures || kSkips));
  static_assert(!kIdles || !(kPacked || kSkips));
  // Rows' maxima with half the instructions: elsewhere nothing is gained by it.
  static constexpr bool kIntegerMaxima =
      (!kModifies || kFeatures == kDropout) && (kOverlap || kTwoCtas || kGroups == 3);
  // Lanes look at each other's maxima only where one may have moved.
  static constexpr bool kQuickMaxima = kIntegerMaxima && !kModifies && !kRowBiased && kDim < 128;
  // Softmax beside P V with three warpgroups, which leaves few registers. The product with values is waited for when the weights of
  // the first keys are found, and weights are packed beside the exponentials of later ones.
  static constexpr bool kFewRegisters = kOverlap && kGroups == 3;
  static constexpr bool kPacksEarly = kFewRegisters;
  static_assert(!(kPacksEarly && kBounded));  // weigh_bounded() does not end the product
  // The next tile is asked for while a tile's last block is loaded, or at its start if it has no more than so many.
  static constexpr int kFewBlocks = kOverlap || kTwoCtas ? 2 : 0;
  static constexpr int kStages = kTwoCtas ? 4 : 2;
  // At the barriers of keys and values that are loaded. In pages all lanes say where.
  static constexpr int kFullArrivals = kPaged ? kWarpArrivals : 1;
  static constexpr int kKeyArrivals = kFullArrivals + (kRowBiased ? kWarpArrivals : 0);
  static constexpr int kConsumers = 128 * kGroups, kThreads = kConsumers + 128;
  // At those of what the computing warps have read, in a pair those of both CTAs.
  static constexpr int kEmptyArrivals = (kPairs ? 2 : 1) * kConsumers / 32 * kWarpArrivals;
  // What the loading warpgroup leaves to the others. Looking pages up takes more of them.
  static constexpr int kProducerRegisters = kTwoCtas               ? kRowBiased ? 48 : 32
                                            : kGroups == 3         ? 32
                                            : kPaged || kRowBiased ? 56
                                                                   : 40;
  static constexpr int kConsumerRegisters = kTwoCtas       ? kRowBiased ? 96 : 104
                                            : kGroups == 3 ? 160
                                                           : (504 - kProducerRegisters) / 2 / 8 * 8;

  using Query = PanelTile<kM, kDim>;
  using Key = PanelTile<kN, kDim>;
  using Value = PanelTile<kN, kDimV>;
  using Bias = PanelTile<kM, kFloatBiased ? 2 * kN : kBiased ? kN : 64>;  // columns of two bytes
  // A bias that all rows share: of each key three numbers of bfloat16 whose sum it is, and ones to multiply them with.
  using BiasRow = PanelTile<kN, 32>;
  using Ones = PanelTile<64, 32>;
  static constexpr int kBiasBytes = kRowBiased ? BiasRow::kBytes : kBiased ? Bias::kBytes : 0;
  using Tile = std::conditional_t<kModifies, ModifiedQueryTile,
                                  std::conditional_t<kFewTiles, SplitQueryTile, QueryTile>>;
  using Control = HopperControl<kQueryStages, kStages, kPaged ? 32 : 1, Tile>;
  static constexpr int kKeyOffset = kQueryStages * Query::kBytes;
  static constexpr int kValueOffset = kKeyOffset + kStages * Key::kBytes;
  static constexpr bool kStaged = kStaged_;
  // Of a warp's 16 rows so many columns at a time: twice 128 at head_dim 256, where no more fits.
  static constexpr int kStagedColumns = kDimV > 128 ? 128 : kDimV;
  static constexpr int kStagedBytes = kStaged ? 16 * kStagedColumns * 2 : 0;  // of a warp
  static constexpr int kStagingOffset = kValueOffset + kStages * Value::kBytes;
  static constexpr int kBiasOffset = kStagingOffset + kConsumers / 32 * kStagedBytes;
  // Of a bias of float32 one block fits at head_dim 128, whose panels are given back one by one.
  static constexpr bool kPanelwise = kFloatBiased && kDim > 64;
  static constexpr int kBiasBlocks = kPanelwise ? 1 : kStages;
  static_assert(!kFloatBiased || Bias::kPanels <= 4);
  static constexpr int kOnesOffset = kBiasOffset + kBiasBlocks * kBiasBytes;
  static constexpr int kControlOffset = kOnesOffset + (kRowBiased ? Ones::kBytes : 0);
  static constexpr int kSharedBytes = kControlOffset + sizeof(Control);
  static constexpr int kCtas = kTwoCtas ? 2 : 1;
  static_assert(kCtas * (kSharedBytes + 1024) <= 233472, "an SM has 228 KB, a CTA takes one more");
};

// The LSE of one split of the keys: of a row of the operands, over all packs, and a head.
__device__ __forceinline__ float& split_lse(const HopperForwardParams& p, int split, int64_t row,
                                            int head) {
  const int64_t rows = int64_t{p.problem.packs} * p.problem.q_rows;
  return p.few.lse[(split * rows + row) * p.problem.heads + head];
}

// A place in a ring of buffers; the parity that a consumer waits for is that of the round.
template <int kStages>
struct RingPlace {
  int stage = 0, parity = 0;
  __device__ __forceinline__ RingPlace before() const {
    return stage > 0 ? RingPlace{stage - 1, parity} : RingPlace{kStages - 1, parity ^ 1};
  }
  __device__ __forceinline__ void next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace jax_baracuda
