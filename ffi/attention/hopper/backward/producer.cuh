// The loading warp: finds the blocks of keys and the blocks of query rows that see some of each, loads them, and tells
// the consumers through shared memory what it loaded.
#pragma once

#include <type_traits>

#include "attention/hopper/backward/conversion.cuh"
#include "attention/hopper/backward/schedule.cuh"
#include "attention/hopper/backward/traits.cuh"
#include "device/bulk.cuh"
#include "device/elect.cuh"
#include "device/tma.cuh"

namespace jax_baracuda {

template <class Traits>
struct BackwardProducer {
  using Key = typename Traits::Key;
  using Value = typename Traits::Value;
  using Query = typename Traits::Query;
  using DOut = typename Traits::DOut;
  // Whether it may have to add in order. If so it may turn; pairs that have not go head by head, forwards: another way takes
  // registers.
  static constexpr bool kOrders = Traits::kInOrder || Traits::kFeatures;
  using OrderedRows = std::conditional_t<kOrders, TurningWalk<Traits::kKeys, Traits::kRows>,
                                         RowWalk<Traits::kKeys, Traits::kRows>>;
  using Rows = std::conditional_t<Traits::kCtas == 2 && !kOrders,
                                  Walk<Traits::kKeys, Traits::kRows>, OrderedRows>;
  // Whether the next row block is looked at early, see load_rows_ahead(): pairs have few buffers of Q and dO.
  static constexpr bool kAhead = Traits::kCtas == 2;
  static constexpr int kRows = Traits::kRows, kKeys = Traits::kKeys;
  // A pair of CTAs: each loads half of the columns of Q and dO, for both; LSE and delta come with Q.
  static constexpr bool kPair = Traits::kCtas == 2;
  static constexpr int kStatBytes = kRows * 4 * Traits::kCtas;

  const HopperBackwardParams& p;
  typename Traits::Control& control;
  const uint32_t shared;
  const int lane;

  RingPlace<Traits::kQueryStages> query_place;
  RingPlace<Traits::kDOutStages> dout_place;
  RingPlace<Traits::kKeyStages> key_place;
  int tile_slot = 0;

  __device__ __forceinline__ BackwardProducer(const HopperBackwardParams& p,
                                              typename Traits::Control& control, uint32_t shared,
                                              int lane)
      : p(p), control(control), shared(shared), lane(lane) {}

  __device__ __forceinline__ bool in_order() const { return adds_in_order<Traits>(p.problem); }
  // Whether this is the lane that loads. Pairs do without the choice: it costs them registers.
  __device__ __forceinline__ bool leads() const { return kPair ? lane == 0 : elect_lane(); }
  // Of the CTA in its pair. Asked for anew: the warp has few registers.
  static __device__ __forceinline__ int rank() { return kPair ? cluster_rank() : 0; }

  template <class TileT>
  static __device__ __forceinline__ void load(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                              int row, int head, int pack, uint64_t policy) {
#pragma unroll
    for (int panel = 0; panel < TileT::kPanels; ++panel)
      tma_load(to + panel * TileT::kPanelBytes, &map, barrier, panel * TileT::kColumns, row, head,
               pack, policy);
  }

  template <class TileT>
  __device__ __forceinline__ void load_rows(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                            int row, int head, int pack) const {
    if constexpr (!kPair) {
      load<TileT>(to, map, barrier, row, head, pack, kEvictLast);
    } else {
      constexpr int kHalf = TileT::kPanels / 2;
      static_assert(TileT::kPanels % 2 == 0);
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const int panel = rank() * kHalf + i;
        tma_load_multicast(to + panel * TileT::kPanelBytes, &map, barrier, panel * TileT::kColumns,
                           row, head, pack, 3, kEvictLast);
      }
    }
  }

  __device__ __forceinline__ void load_query(const RowBlock& block, int row, int head, int pack) {
    const int stage = query_place.stage;
    mbarrier_wait(shared_address(&control.query_empty[stage]), query_place.parity ^ 1);
    if (leads()) {
      const uint32_t barrier = shared_address(&control.query_full[stage]);
      control.block[stage] = block;
      control.block[stage].head = head;
      if constexpr (!kPair && !Traits::kFeatures) control.recent[control.loaded++ % 8] = block;
      mbarrier_arrive_expect(barrier, Query::kBytes + kStatBytes);
      load_rows<Query>(shared + Traits::kQueryOffset + stage * Query::kBytes, p.query, barrier, row,
                       head, pack);
      bulk_load(shared + Traits::kLseOffset + stage * kStatBytes,
                p.problem.lse2 + static_cast<int64_t>(block.block) * (2 * kRows), kStatBytes,
                barrier);
    }
    query_place.next();
  }

  __device__ __forceinline__ void load_dout(int block, int row, int head, int pack) {
    const int stage = dout_place.stage;
    mbarrier_wait(shared_address(&control.dout_empty[stage]), dout_place.parity ^ 1);
    if (leads()) {
      const uint32_t barrier = shared_address(&control.dout_full[stage]);
      mbarrier_arrive_expect(barrier, DOut::kBytes + (kPair ? 0 : kStatBytes));
      load_rows<DOut>(shared + Traits::kDOutOffset + stage * DOut::kBytes, p.dout, barrier, row,
                      head, pack);
      if constexpr (!kPair)
        bulk_load(shared + Traits::kDeltaOffset + stage * kStatBytes,
                  p.problem.lse2 + static_cast<int64_t>(block) * (2 * kRows) + kRows, kStatBytes,
                  barrier);
    }
    dout_place.next();
  }

  // Waits until there is room for keys; where these are.
  __device__ __forceinline__ void wait_keys_empty() const {
    mbarrier_wait(shared_address(&control.key_empty[key_place.stage]), key_place.parity ^ 1);
  }
  __device__ __forceinline__ uint32_t keys_full() const {
    return shared_address(&control.key_full[key_place.stage]);
  }
  // Values have one place.
  __device__ __forceinline__ void wait_values_empty() const {
    const int parity = Traits::kKeyStages == 1 ? key_place.parity : key_place.stage;
    mbarrier_wait(shared_address(&control.value_empty), parity ^ 1);
  }

  // Keys and values, when the consumers have done with those before.
  __device__ __forceinline__ void load_keys(const KeyTile& tile, int row) {
    const int own = rank() * Traits::kCtaKeys;
    wait_keys_empty();
    if (leads()) {
      const uint32_t barrier = keys_full();
      mbarrier_arrive_expect(barrier, Traits::kAllKeyBytes);
      load<Key>(shared + key_place.stage * Key::kBytes, p.key, barrier, row + own, tile.kv_head,
                tile.sequence.pack, kEvictFirst);
      if constexpr (kPair) {
        using OtherKey = typename Traits::OtherKey;
#pragma unroll
        for (int panel = 0; panel < OtherKey::kPanels; ++panel)
          tma_load(shared + Traits::kOtherKeyOffset + panel * OtherKey::kPanelBytes, &p.key,
                   barrier, (rank() * OtherKey::kPanels + panel) * OtherKey::kColumns,
                   row + Traits::kCtaKeys - own, tile.kv_head, tile.sequence.pack, kEvictFirst);
      }
    }
    wait_values_empty();
    if (leads()) {
      const uint32_t barrier = shared_address(&control.value_full);
      mbarrier_arrive_expect(barrier, Value::kBytes);
      load<Value>(shared + Traits::kValueOffset, p.value, barrier, row + own, tile.kv_head,
                  tile.sequence.pack, kEvictFirst);
    }
    key_place.next();
  }

  // The same without either, for keys that no row sees. Consumers then release both at once: what they have released
  // before must have been noticed.
  __device__ __forceinline__ void pass_keys() {
    wait_keys_empty();
    wait_values_empty();
    if (leads()) {
      mbarrier_arrive(shared_address(&control.value_full));
      mbarrier_arrive(keys_full());
    }
    key_place.next();
  }

  __device__ __forceinline__ void begin_walk(const Sequence& sequence, int block,
                                             bool backward) const {
    if constexpr (!kOrders) {
      static_cast<OrderedRows&>(control.walk) = OrderedRows(p.problem, sequence, block, backward);
    } else {
      control.walk = OrderedRows(p.problem, sequence, block);
      control.walk.set_from(backward ? 1 << 30
                                     : control.walk.units(control.order.begin).begin + p.lag);
    }
  }

  // Of the tile's rows those of a part.
  __device__ __forceinline__ void take_part(int part) const {
    const int begin = control.walk.begin, blocks = (control.walk.end - begin) / kRows;
    control.walk.begin = begin + blocks * part / p.parts * kRows;
    control.walk.end = begin + blocks * (part + 1) / p.parts * kRows;
  }

  static __device__ __forceinline__ void forget_registers() { asm volatile("" ::: "memory"); }

  // What the warp knows of a block of keys is in shared memory: it has few registers.
  __device__ __forceinline__ void begin_tile(KeyTile& tile, int row, int block,
                                             bool backward) const {
    __syncwarp();
    if (lane == 0) {
      const BackwardParams& problem = p.problem;
      const Sequence sequence = find_sequence(problem, row / problem.kv_heads);
      const int kv_head = row % problem.kv_heads, j0 = block * kKeys;
      begin_walk(sequence, block, backward);
      if (Traits::kDivides && tile.part >= 0) take_part(tile.part / p.divided);
      if (kAhead) forget_registers();
      tile.sequence = sequence;
      tile.visible = control.walk.visible;
      tile.kv_head = kv_head;
      tile.first_key = j0;
      tile.q_begin =
          static_cast<int>(sequence.q_first - static_cast<int64_t>(sequence.pack) * problem.q_rows);
      tile.k_begin =
          static_cast<int>(sequence.k_first - static_cast<int64_t>(sequence.pack) * problem.k_rows);
      tile.first_block =
          (sequence.pack * problem.heads + kv_head * problem.group) * problem.turn_count +
          (problem.cu_seqlens_q ? tile.q_begin / kRows + sequence.index % problem.sequences : 0);
      tile.sums = problem.dq_sum -
                  static_cast<int64_t>(row / p.sum_rows) * p.sum_blocks * (kRows * Traits::kDim);
      tile.padded = j0 + kKeys > sequence.kv_len && tile.k_begin + sequence.kv_len < problem.k_rows;
      tile.kind = KeyTileKind::kSeen;
#pragma unroll
      for (int group = 0; group < Traits::kGroups; ++group) {
        const int begin = j0 + 64 * group, end = begin + 64;
        tile.whole[group] = control.walk.whole(begin, end);
        tile.some[group] = tile.visible.rows_of_keys(begin, end);
      }
    }
    __syncwarp();
  }

  // How many of the first `count` blocks of keys have some of these.
  static __device__ __forceinline__ int blocks_below(const Visibility::Keys& keys, int count) {
    const int sinks = (keys.sink_end + kKeys - 1) / kKeys, begin = keys.begin / kKeys;
    const int end = keys.begin < keys.end ? (keys.end + kKeys - 1) / kKeys : 0;
    return min(count, sinks) + max(0, min(count, end) - max(begin, sinks));
  }
  // How many blocks of keys add to dQ of the unit of rows before this one.
  __device__ __forceinline__ int turn(int unit) const {
    const OrderedRows& rows = control.walk;
    const KeyOrder& order = control.order;
    if (!rows.segments.any()) {
      const Visibility::Keys keys = rows.visible.keys_of_rows(unit, unit + kRows);
      if (!order.descending()) return blocks_below(keys, rows.block);
      return blocks_below(keys, order.begin) + blocks_below(keys, order.end) -
             blocks_below(keys, rows.block + 1);
    }
    const int end =
        order.descending() ? min(order.end, (rows.k_rows + kKeys - 1) / kKeys) : rows.block;
    int count = 0;
    for (int base = 0; base < end; base += 32) {
      const int other = base + lane;
      bool meets = false;
      if (other < order.begin || (other < end && (!order.descending() || other > rows.block))) {
        const Visibility::Rows range = rows.units(other);
        meets =
            range.begin <= unit && unit < range.end && rows.overlap(other, unit) != Overlap::kNone;
      }
      count += __popc(__ballot_sync(0xffffffffu, meets));
    }
    return count;
  }

  // In the workspace.
  __device__ __forceinline__ int block_number(const KeyTile& tile, typename Rows::Place at) const {
    return tile.first_block + at.head * p.problem.turn_count + at.row / kRows;
  }
  __device__ __forceinline__ int query_head(const KeyTile& tile, typename Rows::Place at) const {
    return tile.kv_head * p.problem.group + at.head;
  }
  __device__ __forceinline__ RowBlock row_block(const KeyTile& tile, typename Rows::Place at,
                                                bool last) const {
    RowBlock block;
    block.first_row = at.row;
    block.flags = last ? kLastRows : 0;
#pragma unroll
    for (int group = 0; group < Traits::kGroups; ++group) {
      if (at.row < tile.whole[group].begin || at.row + kRows > tile.whole[group].end)
        block.flags |= kMaskedForFirstGroup << group;
      if (Traits::kPasses &&
          (at.row + kRows <= tile.some[group].begin || at.row >= tile.some[group].end))
        block.flags |= kHiddenFromFirstGroup << group;
    }
    if (control.walk.by_segment(at)) block.flags |= kSegmentMaskedRows;
    const int q_len = tile.visible.q_len;
    if (at.row + kRows > q_len && tile.q_begin + q_len < p.problem.q_rows)
      block.flags |= kPaddedRows;
    block.block = block_number(tile, at);
    if (kAhead && kOrders && at.head > 0)
      block.turn = control.upcoming.turn;  // that of the head before
    else
      block.turn = in_order() ? turn(at.row) : 0;
    return block;
  }

  __device__ __forceinline__ void load_tile(int row_of_tiles, int index, bool backward) {
    KeyTile& tile = control.tile[tile_slot];
    if (!kPair && row_of_tiles >= p.sum_rows)
      wait_for_count(p.converted + (row_of_tiles - p.sum_rows), p.row_blocks);
    begin_tile(tile, row_of_tiles, index, backward);
    const Rows& rows = control.walk;
    typename Rows::Place at = rows.first();
    tile_slot = tile_slot == 2 ? 0 : tile_slot + 1;
    if (rows.at_end(at)) {
      if (lane == 0) tile.kind = KeyTileKind::kUnseen;
      return pass_keys();
    }
    if constexpr (kAhead) return load_rows_ahead(tile, rows, at);
    bool begins = true;
    while (!rows.at_end(at)) {
      const typename Rows::Place next = rows.after(at);
      const RowBlock block = row_block(tile, at, rows.at_end(next));
      const int row = tile.q_begin + at.row, head = tile.kv_head * p.problem.group + at.head;
      load_query(block, row, head, tile.sequence.pack);
      if (begins) load_keys(tile, tile.k_begin + tile.first_key);
      begins = false;
      load_dout(block.block, row, head, tile.sequence.pack);
      at = next;
    }
  }

  // What is said of a row block is found out before the warp waits for room for the dO of the one before: then there is room
  // for its Q at once.
  __device__ __forceinline__ void load_rows_ahead(const KeyTile& tile, const Rows& rows,
                                                  typename Rows::Place at) {
    typename Rows::Place before = {0, -1};
    while (true) {
      typename Rows::Place next = at;
      if (!rows.at_end(at)) {
        next = rows.after(at);
        const RowBlock block = row_block(tile, at, rows.at_end(next));
        if (kOrders) __syncwarp();
        if (lane == 0) control.upcoming = block;
        if (kOrders) __syncwarp();
      }
      if (before.row >= 0)
        load_dout(block_number(tile, before), tile.q_begin + before.row, query_head(tile, before),
                  tile.sequence.pack);
      if (rows.at_end(at)) return;
      load_query(control.upcoming, tile.q_begin + at.row, query_head(tile, at), tile.sequence.pack);
      if (before.row < 0) load_keys(tile, tile.k_begin + tile.first_key);
      before = at;
      at = next;
    }
  }

  // `first`: place of the first tile.
  __device__ __forceinline__ void run(int first) {
    // With features there is no register for the first place: it comes from the counter, too.
    KeyTileWalk<kPair, Traits::kDivides> walk(p, first, in_order(), kOrders);
    for (TilePlace at; walk.next(&at);) {
      // A sequence longer than max_k has more blocks than slots: neighbours go to the same CTA.
      const int keys = find_sequence(p.problem, at.row / p.problem.kv_heads).k_rows;
      const int blocks = (keys + kKeys - 1) / kKeys, share = (blocks + p.tiles - 1) / p.tiles;
      const int begin = at.tile * share, end = min(begin + share, blocks);
      const KeyOrder order = {at.order.begin * share, at.order.end * share, at.order.way};
      if constexpr (kOrders) {
        __syncwarp();
        if (lane == 0) control.order = order;
      }
      for (int i = begin; i < end; ++i) {
        if (Traits::kDivides && lane == 0) control.tile[tile_slot].part = at.part;
        load_tile(at.row, order.descending() ? begin + end - 1 - i : i, order.backward());
      }
    }
    wait_keys_empty();
    if (lane == 0) {
      control.tile[tile_slot].kind = KeyTileKind::kNone;
      mbarrier_arrive(keys_full());
    }
  }
};

}  // namespace jax_baracuda
