// The loading warp: finds the tiles of query rows and the blocks of keys that each of them sees, loads them, and tells
// the consumers through shared memory what it loaded.
#pragma once

#include "attention/forward/epilogue.cuh"
#include "attention/hopper/schedule.cuh"
#include "attention/hopper/traits.cuh"
#include "device/divide.cuh"
#include "device/math.cuh"
#include "device/page_table.cuh"
#include "device/tma.cuh"

namespace jax_baracuda {

// The blocks of keys that a tile sees, by position and segment. Requests in pages have no segments, and the loading warp no
// registers to spare for them.
template <class Traits>
struct BlockWalk {
  SegmentBlocks segments;

  __device__ __forceinline__ BlockWalk(const ForwardParams& p, const Sequence& sequence,
                                       const Visibility& visible, int i0, int i1)
      : segments(Segments(p, sequence), visible, i0, i1) {}
  __device__ __forceinline__ int before(const KeyBlocks<Traits::kN>& blocks, int block) const {
    if constexpr (Traits::kPaged) return blocks.before(block);
    return segments.before(blocks, block);
  }
  __device__ __forceinline__ bool has_mixed_segments(int block) const {
    if constexpr (Traits::kPaged) return false;
    return segments.segments.any() &&
           segments.template overlap<Traits::kN>(block) == Overlap::kSome;
  }
};

template <class Traits>
struct Producer {
  using Query = typename Traits::Query;
  using Key = typename Traits::Key;
  using Value = typename Traits::Value;

  const HopperForwardParams& p;
  typename Traits::Control& control;
  uint32_t shared;
  int lane;

  RingPlace<Traits::kQueryStages> query_place;
  RingPlace<Traits::kStages> key_place, value_place;
  RingPlace<1> bias_place;  // of float32
  int tile_slot = 0;
  // The block of values that is due: it is loaded after the next block of keys, which the consumers need first.
  BoxPlace due_value;

  __device__ __forceinline__ Producer(const HopperForwardParams& p,
                                      typename Traits::Control& control, uint32_t shared, int lane)
      : p(p), control(control), shared(shared), lane(lane) {}

  template <class TileT>
  __device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                           const BoxPlace& place, uint64_t policy) {
#pragma unroll
    for (int panel = 0; panel < TileT::kPanels; ++panel)
      tma_load(to + panel * TileT::kPanelBytes, &map, barrier, panel * TileT::kColumns, place.row,
               place.head, place.pack, policy);
  }
  // Half of a block, to both CTAs of the pair.
  template <class TileT>
  __device__ __forceinline__ void copy_half(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                            const BoxPlace& place) {
    const int first = cluster_rank() * (TileT::kRows / 2);
#pragma unroll
    for (int panel = 0; panel < TileT::kPanels; ++panel)
      tma_load_multicast(to + panel * TileT::kPanelBytes + TileT::row_offset(first), &map, barrier,
                         panel * TileT::kColumns, place.row + first, place.head, place.pack, 3,
                         kEvictLast);
  }
  __device__ __forceinline__ void load_query(int row, int head, int pack) {
    const int stage = query_place.stage;
    const uint32_t to = shared + stage * Query::kBytes,
                   barrier = shared_address(&control.query_full[stage]);
    if constexpr (Traits::kPacked) {
      // A box of rows and heads, which may not fill the tile: what is below it then belongs to no row.
      mbarrier_arrive_expect(barrier, p.few.rows * p.few.packed.divisor * Traits::kDim * 2);
      copy_box<Query>(to, p.query, barrier, {head, row, pack}, kEvictFirst);
    } else {
      mbarrier_arrive_expect(barrier, Query::kBytes);
      copy_box<Query>(to, p.query, barrier, {row, head, pack}, kEvictFirst);
    }
    query_place.next();
  }
  // All lanes. What lane 0 wrote before is there for whoever waits for the barrier.
  template <class TileT>
  __device__ __forceinline__ void load_block(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                             const BoxPlace& place, int others = 0) {
    if (lane == 0) mbarrier_arrive_expect(barrier, TileT::kBytes + others);
    if constexpr (Traits::kPaged) {
      if (kRacecheck && lane > 0) mbarrier_arrive(barrier);
      __syncwarp();
      const BoxPlace box = {place.row, place.head, page_in_store(p.problem.pages, place.pack)};
      if (lane < p.boxes.count)
        copy_box<TileT>(to + lane * p.boxes.rows * TileT::row_offset(1), map, barrier, box,
                        kEvictLast);
    } else if constexpr (Traits::kPairs) {
      if (lane == 0) copy_half<TileT>(to, map, barrier, place);
    } else {
      if (lane == 0) copy_box<TileT>(to, map, barrier, place, kEvictLast);
    }
  }
  __device__ __forceinline__ void load_key(const BoxPlace& place) {
    const int stage = key_place.stage;
    load_block<Key>(shared + Traits::kKeyOffset + stage * Key::kBytes, p.key,
                    shared_address(&control.key_full[stage]), place,
                    Traits::kBiasWithKeys ? Traits::Bias::kBytes : 0);
    key_place.next();
  }
  __device__ __forceinline__ void load_value(const BoxPlace& place) {
    const int stage = value_place.stage;
    mbarrier_wait(shared_address(&control.value_empty[stage]), value_place.parity ^ 1);
    load_block<Value>(shared + Traits::kValueOffset + stage * Value::kBytes, p.value,
                      shared_address(&control.value_full[stage]), place);
    value_place.next();
  }
  __device__ __forceinline__ void load_due_value() {
    if (Traits::kPaged || Traits::kTwoCtas || due_value.row < 0) return;
    load_value(due_value);
    due_value.row = -1;
  }

  // Writes the record of a block, which those who wait for its keys may read then, and the warp that brings their bias now.
  __device__ __forceinline__ void announce(const KeyBlock& block) {
    control.block[key_place.stage] = block;
    if constexpr (Traits::kRowBiased)
      mbarrier_arrive(shared_address(&control.record_full[key_place.stage]));
  }

  // The bias of the block of keys that was loaded last, in the buffer of the same place. row: first of the tile.
  __device__ __forceinline__ void load_bias(int first_key, int row, int head, int sequence) {
    using Bias = typename Traits::Bias;
    if constexpr (Traits::kPanelwise) return load_float_bias(first_key, row, head, sequence);
    const auto at = key_place.before();
    if constexpr (!Traits::kBiasWithKeys)
      mbarrier_wait(shared_address(&control.bias_empty[at.stage]), at.parity ^ 1);
    if (lane > 0) return;
    const uint32_t barrier = shared_address(Traits::kBiasWithKeys ? &control.key_full[at.stage]
                                                                  : &control.bias_full[at.stage]);
    const BoxPlace place = {row, p.problem.bias.head_stride ? head : 0,
                            p.problem.bias.sequence_stride ? sequence : 0};
    if constexpr (!Traits::kBiasWithKeys) mbarrier_arrive_expect(barrier, Bias::kBytes);
#pragma unroll
    for (int panel = 0; panel < Bias::kPanels; ++panel)
      tma_load(shared + Traits::kBiasOffset + at.stage * Bias::kBytes + panel * Bias::kPanelBytes,
               &p.bias, barrier,
               (Traits::kFloatBiased ? 2 : 1) * first_key + panel * Bias::kColumns, place.row,
               place.head, place.pack, kEvictNormal);
  }

  // The same of float32, panel by panel.
  __device__ __forceinline__ void load_float_bias(int first_key, int row, int head, int sequence) {
    using Bias = typename Traits::Bias;
    const BoxPlace place = {row, p.problem.bias.head_stride ? head : 0,
                            p.problem.bias.sequence_stride ? sequence : 0};
#pragma unroll 1
    for (int panel = 0; panel < Bias::kPanels; ++panel) {
      mbarrier_wait(shared_address(&control.bias_empty[panel]), bias_place.parity ^ 1);
      if (lane > 0) continue;
      const uint32_t barrier = shared_address(&control.bias_full[panel]);
      mbarrier_arrive_expect(barrier, Bias::kPanelBytes);
      tma_load(shared + Traits::kBiasOffset + panel * Bias::kPanelBytes, &p.bias, barrier,
               2 * first_key + panel * Bias::kColumns, place.row, place.head, place.pack,
               kEvictNormal);
    }
    bias_place.next();
  }

  // In pages a second warp loads the values: what takes longest is to start so many copies, one lane after the other. It
  // learns of the blocks as the consumers do, and gives the record of a block back as they do.
  __device__ __forceinline__ void load_values() {
    while (true) {
      const int stage = key_place.stage;
      mbarrier_wait(shared_address(&control.key_full[stage]), key_place.parity);
      const bool more = !__any_sync(0xffffffffu, control.block[stage].flags & kNoBlock);
      const BoxPlace place = control.box[stage][lane];
      __syncwarp();
      mbarrier_arrive_warp(shared_address(&control.key_empty[stage]));
      if (!more) return;
      load_value(place);
      key_place.next();
    }
  }

  // In pages: what lies past the history is past the end of a page, too, so that it comes as zeros. The page is the table's.
  __device__ __forceinline__ BoxPlace find_block(const Sequence& sequence, int kv_head,
                                                 int first_key) const {
    if constexpr (Traits::kPaged) {
      const PageTable& pages = p.problem.pages;
      const int token = first_key + lane * p.boxes.rows;
      if (lane >= p.boxes.count || token >= sequence.kv_len)
        return {static_cast<int>(pages.page_size.divisor), kv_head, 0};
      return {row_in_page(pages, token), kv_head, page_of(pages, sequence.first_entry, token)};
    } else {
      const int64_t first =
          sequence.k_first - static_cast<int64_t>(sequence.pack) * p.problem.k_rows;
      return {static_cast<int>(first) + first_key, kv_head, sequence.pack};
    }
  }

  // Whether a block has rows of values past the sequence's last one that may be anything: those past the end of an array, or
  // of a page, are zeros.
  __device__ __forceinline__ bool is_padded(const Sequence& sequence, int block) const {
    if ((block + 1) * Traits::kN <= sequence.kv_len) return false;
    if constexpr (Traits::kPaged) return sequence.kv_len % p.boxes.rows != 0;
    const int64_t first = sequence.k_first - static_cast<int64_t>(sequence.pack) * p.problem.k_rows;
    return first + sequence.kv_len < p.problem.k_rows;
  }

  // Rows of a sequence in a tile.
  __device__ __forceinline__ int tile_rows() const {
    return Traits::kPacked ? p.few.rows : Traits::kM;
  }

  // Heads of a group in a tile.
  __device__ __forceinline__ int packed_heads() const {
    return Traits::kPacked ? p.few.packed.divisor : 1;
  }

  // The row of the sequence, from the tile's first one, that a row of the tile is of.
  __device__ __forceinline__ int row_of(int row) const {
    return Traits::kPacked ? static_cast<int>(divide(row, p.few.packed)) : row;
  }

  // Of a tile, or of a split of it, without keys: zeros and -inf.
  __device__ __forceinline__ void store_nothing(const Sequence& sequence, int pack_row, int head,
                                                int i0, int split) {
    const int end = min(i0 + tile_rows(), sequence.q_rows);
    if constexpr (Traits::kFewTiles) {
      if (p.few.splits > 1) {
        const int heads = p.few.packed.divisor;
        for (int at = lane; at < (end - i0) * heads; at += 32)
          split_lse(p, split, sequence.q_first + i0 + at / heads, head + at % heads) =
              negative_infinity();
        return;
      }
    }
    for (int h = 0; h < packed_heads(); ++h)
      store_no_attention<typename Traits::T>(p.problem, sequence.pack, head + h, pack_row + i0,
                                             pack_row + end, lane, 32);
  }

  // What a warpgroup sees less of a block: the first blocks of a tile may lie past its last row's keys.
  __device__ __forceinline__ int hidden_parts(const Visibility& visible, int i0, int first_key) {
    int flags = 0;
    if constexpr (Traits::kSkips) {
#pragma unroll
      for (int g = 0; g < Traits::kGroups; ++g) {
        const auto keys = visible.keys_of_rows(i0 + row_of(64 * g), i0 + row_of(64 * g + 63) + 1);
        const int end = max(keys.end, keys.sink_end);
        if (end <= first_key) flags |= kHidden << g;
      }
    }
    return flags;
  }

  // As much of it as the consumers need.
  __device__ __forceinline__ void set_modifier(ScoreModifier* modify, const Sequence& sequence,
                                               int head) {
    const ForwardParams& problem = p.problem;
    if constexpr (Traits::kFeatures == kDropout) {
      modify->set_dropout(problem, sequence, head);
    } else if constexpr (Traits::kFeatures == kSoftCap) {
      modify->scale = problem.scale / problem.soft_cap;
    } else if constexpr (Traits::kBiased) {
      modify->scale = 1.0f / problem.scale;
    } else if constexpr (Traits::kAnything && !Traits::kPaged) {
      *modify = ScoreModifier(problem, sequence, head);
    } else {
      modify->set_slope(problem, sequence, head);
      if constexpr (Traits::kFeatures == kAlibi) modify->slope /= problem.scale * kLog2E;
    }
  }

  // The warpgroups that have no rows of a tile see nothing of its blocks.
  __device__ __forceinline__ int idle_parts(const Sequence& sequence, int i0) const {
    if constexpr (!Traits::kIdles) return 0;
    const int used = min((sequence.q_rows - i0 + 63) / 64, Traits::kGroups);
    return (kHidden << Traits::kGroups) - (kHidden << used);
  }

  // All blocks of one tile, or of a split of it. `ask` is called before the last one is loaded, if there is any; for tiles of
  // few blocks, before that waits for buffers.
  template <class Ask>
  __device__ __forceinline__ void load_tile(const Sequence& sequence, int head, int i0, int split,
                                            Ask ask) {
    constexpr int kN = Traits::kN;
    const ForwardParams& problem = p.problem;
    const Visibility visible(problem, sequence);
    const int i1 = min(i0 + tile_rows(), sequence.q_len);
    // Rows past the last one may see anything, unless what they see looks something up.
    const KeyBlocks<kN> blocks(visible, i0, Traits::kAnything ? i0 + Traits::kM : i1);
    const BlockWalk<Traits> walk(problem, sequence, visible, i0, i1);
    int from = blocks.last, stop = -1;  // blocks before `from` and after `stop`
    if constexpr (Traits::kFewTiles) {
      const int count = blocks.count(), begin = count * split / p.few.splits,
                end = count * (split + 1) / p.few.splits;
      from = blocks.at(begin) + 1;
      stop = end < count ? blocks.at(end) : -1;
    }
    int block = i0 < i1 ? walk.before(blocks, from) : -1;
    const int pack_row =
        static_cast<int>(sequence.q_first - static_cast<int64_t>(sequence.pack) * problem.q_rows);
    if (block <= stop) {
      store_nothing(sequence, pack_row, head, i0, split);
      return;
    }
    const bool few = block <= stop + Traits::kFewBlocks;
    if (few) ask();
    const int kv_head = head / problem.group;
    BoxPlace place = find_block(sequence, kv_head, block * kN);
    // The only buffer of queries is free when all products of the last tile with keys are done, which is no time to
    // wait for its last values.
    if (Traits::kQueryStages == 1) load_due_value();
    mbarrier_wait(shared_address(&control.query_empty[query_place.stage]), query_place.parity ^ 1);
    if (lane == 0) {
      auto& tile = control.tile[tile_slot];
      static_cast<QueryTile&>(tile) = {sequence, visible, head, i0};
      if constexpr (Traits::kFewTiles) tile.split = split;
      if constexpr (Traits::kModifies) set_modifier(&tile.modify, sequence, head);
      load_query(pack_row + i0, head, sequence.pack);
    } else {
      query_place.next();
    }
    tile_slot = (tile_slot + 1) % Traits::Control::kTiles;

    const int idle = idle_parts(sequence, i0);
    int flags = kFirstBlock;
    const int foreign = Traits::kBounded && i0 + tile_rows() > sequence.q_len ? kForeignRows : 0;
    while (block > stop) {
      const int next = walk.before(blocks, block);
      if (next <= stop) {
        flags |= kLastBlock;
        if (!few) ask();
      }
      flags |= foreign | idle | hidden_parts(visible, i0, block * kN);
      if (!blocks.whole(block))
        flags |= Traits::kAnything || visible.has_window() ? kPositionMasked : kEndMasked;
      if (walk.has_mixed_segments(block)) flags |= kSegmentMasked;
      if (is_padded(sequence, block)) flags |= kPaddedBlock;
      const BoxPlace following = find_block(sequence, kv_head, max(next, 0) * kN);
      mbarrier_wait(shared_address(&control.key_empty[key_place.stage]), key_place.parity ^ 1);
      if (lane == 0) announce({block * kN, flags});
      if constexpr (Traits::kPaged) {
        control.box[key_place.stage][lane] = place;
        __syncwarp();
      }
      load_key(place);
      if constexpr (Traits::kBiasWithKeys) load_bias(block * kN, i0, head, sequence.index);
      load_due_value();
      if constexpr (Traits::kBiased && !Traits::kBiasWithKeys)
        load_bias(block * kN, i0, head, sequence.index);
      if constexpr (Traits::kTwoCtas)
        load_value(place);  // there are buffers enough
      else
        due_value = place;
      place = following;
      block = next;
      flags = 0;
    }
  }

  // All tiles of this CTA, of requests in pages and of other sequences.
  __device__ __forceinline__ void load_requests() {
    const ForwardParams& problem = p.problem;
    SequenceWalk walk(problem, p.order.counter, tile_rows(), problem.heads / packed_heads());
    for (int index, head, tile; walk.next(&index, &head, &tile);)
      load_tile(find_request(problem, index), head * packed_heads(), tile * tile_rows(), 0,
                [&] { walk.ask(); });
  }
  __device__ __forceinline__ void load_sequences() {
    const ForwardParams& problem = p.problem;
    TileWalk walk(p.order);
    for (int row, tile; walk.next(&row, &tile);) {
      int split = 0, packed = 1;
      if constexpr (Traits::kFewTiles) {
        walk.ask();  // there are no registers to do so later
        split = row % p.few.splits;
        row /= p.few.splits;
        packed = p.few.packed.divisor;
      }
      const int heads = problem.heads / packed;
      const Sequence sequence = find_sequence(problem, row / heads);
      // A sequence longer than max_q: the first CTA of its row goes on.
      for (int i0 = tile * tile_rows(); i0 < sequence.q_rows; i0 += p.order.tiles * tile_rows())
        load_tile(sequence, row % heads * packed, i0, split, [&] {
          if constexpr (!Traits::kFewTiles)
            if (i0 + p.order.tiles * tile_rows() >= sequence.q_rows) walk.ask();
        });
    }
  }

  // A tile whose rows are all there and see all keys.
  __device__ __forceinline__ void load_whole_tile(const Sequence& sequence, int head, int i0) {
    constexpr int kN = Traits::kN;
    const int keys = sequence.k_rows, kv_head = head / p.problem.group;
    load_due_value();
    mbarrier_wait(shared_address(&control.query_empty[query_place.stage]), query_place.parity ^ 1);
    if (lane == 0) {
      control.tile[tile_slot] = {sequence, Visibility(p.problem, sequence), head, i0};
      load_query(i0, head, sequence.pack);
    } else {
      query_place.next();
    }
    tile_slot = (tile_slot + 1) % Traits::Control::kTiles;
    int flags = kFirstBlock | (keys % kN ? kEndMasked : 0);
    for (int first = (keys - 1) / kN * kN; first >= 0; first -= kN) {
      if (first == 0) flags |= kLastBlock;
      mbarrier_wait(shared_address(&control.key_empty[key_place.stage]), key_place.parity ^ 1);
      if (lane == 0) announce({first, flags});
      const BoxPlace place = {first, kv_head, sequence.pack};
      load_key(place);
      load_due_value();
      due_value = place;
      flags = 0;
    }
  }
  // Pairs of tiles, those of a head one after the other.
  __device__ __forceinline__ void load_pairs() {
    const int pairs = p.order.tiles / 2;
    for (int pair = blockIdx.x / 2; pair < pairs * p.order.rows; pair += gridDim.x / 2) {
      const int row = pair / pairs, tile = pair % pairs * 2 + cluster_rank();
      load_whole_tile(find_sequence(p.problem, row / p.problem.heads), row % p.problem.heads,
                      tile * Traits::kM);
    }
  }

  __device__ __forceinline__ void run() {
    const ForwardParams& problem = p.problem;
    if constexpr (Traits::kPaged)
      load_requests();
    else if constexpr (Traits::kPairs)
      load_pairs();
    else
      load_sequences();
    mbarrier_wait(shared_address(&control.key_empty[key_place.stage]), key_place.parity ^ 1);
    if (lane == 0) {
      announce({0, kNoBlock});
      mbarrier_arrive(shared_address(&control.key_full[key_place.stage]));
    } else if (Traits::kPaged && kRacecheck) {
      mbarrier_arrive(shared_address(&control.key_full[key_place.stage]));
    }
    load_due_value();
    if (problem.cu_seqlens_q) store_outside_sequences();
  }

  // Rows of packed calls that belong to no sequence.
  __device__ __forceinline__ void store_outside_sequences() {
    const ForwardParams& problem = p.problem;
    for (int at = blockIdx.x; at < problem.packs * problem.heads; at += gridDim.x) {
      const int pack = at / problem.heads, head = at % problem.heads;
      const int32_t* cu =
          problem.cu_seqlens_q + static_cast<int64_t>(pack) * (problem.sequences + 1);
      const int begin = clamped(cu[0], 0, problem.q_rows);
      const int end = clamped(cu[problem.sequences], begin, problem.q_rows);
      store_no_attention<typename Traits::T>(problem, pack, head, 0, begin, lane, 32);
      store_no_attention<typename Traits::T>(problem, pack, head, end, problem.q_rows, lane, 32);
      if constexpr (Traits::kFewTiles) {
        for (int split = 0; p.few.splits > 1 && split < p.few.splits; ++split)
          for (int row = lane; row < problem.q_rows; row += 32)
            if (row < begin || row >= end)
              split_lse(p, split, static_cast<int64_t>(pack) * problem.q_rows + row, head) =
                  negative_infinity();
      }
    }
  }
};

}  // namespace jax_baracuda
