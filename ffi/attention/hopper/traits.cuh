// The shapes of one instantiation of the Hopper forward kernel and its shared memory.
#pragma once

#include <type_traits>

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
  kPaddedBlock = 32,  // rows past the sequence's last key may hold anything
  kNoBlock = 64,      // all tiles are done
};

struct KeyBlock {
  int first_key, flags;
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

template <int kQueryStages, int kStages, class QueryTile>
struct HopperControl {
  // At most three are in use: the one that ends, the current, the one being loaded.
  static constexpr int kTiles = 4;

  uint64_t query_full[kQueryStages], query_empty[kQueryStages];
  uint64_t key_full[kStages], key_empty[kStages];
  uint64_t value_full[kStages], value_empty[kStages];
  KeyBlock block[kStages];
  QueryTile tile[kTiles];
};

// kGroups warpgroups have 64 query rows each; a further warpgroup loads.
template <class T_, int kDim_, int kDimV_, int kN_, int kGroups_, int kQueryStages_,
          bool kPingpong_, bool kOverlap_, bool kFeatures_, bool kPaged_>
struct HopperTraits {
  using T = T_;
  static constexpr int kDim = kDim_, kDimV = kDimV_, kN = kN_, kGroups = kGroups_;
  static constexpr int kM = 64 * kGroups;
  static constexpr int kStages = 2, kQueryStages = kQueryStages_;
  static constexpr bool kFeatures = kFeatures_;  // soft cap, ALiBi, bias, dropout
  static constexpr bool kPaged = kPaged_;        // keys in pages
  static constexpr bool kOverlap = kOverlap_;
  static constexpr bool kPingpong = kPingpong_;  // warpgroups issue their products in turns
  static constexpr int kConsumers = 128 * kGroups, kThreads = kConsumers + 128;
  // What the loading warpgroup leaves to the others. Looking pages up takes more of them.
  static constexpr int kProducerRegisters = kGroups == 3 ? 32 : kPaged ? 56 : 40;
  static constexpr int kConsumerRegisters =
      kGroups == 3 ? 160 : (504 - kProducerRegisters) / 2 / 8 * 8;

  using Query = PanelTile<kM, kDim>;
  using Key = PanelTile<kN, kDim>;
  using Value = PanelTile<kN, kDimV>;
  using Control = HopperControl<kQueryStages, kStages,
                                std::conditional_t<kFeatures, ModifiedQueryTile, QueryTile>>;
  static constexpr int kKeyOffset = kQueryStages * Query::kBytes;
  static constexpr int kValueOffset = kKeyOffset + kStages * Key::kBytes;
  static constexpr int kControlOffset = kValueOffset + kStages * Value::kBytes;
  static constexpr int kSharedBytes = kControlOffset + sizeof(Control);
  static_assert(kSharedBytes <= 232448, "an SM has 227 KB");
};

// A place in a ring of buffers; the parity that a consumer waits for is that of the round.
template <int kStages>
struct RingPlace {
  int stage = 0, parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace jax_baracuda
