// Which query rows a block of keys meets, and whose turn it is to add to their dQ.
#pragma once

#include "attention/backward/params.h"
#include "attention/sequence.cuh"

namespace jax_baracuda {

// The (query head of the group, block of rows) pairs that a block of keys goes over. Rows are
// counted in units of 64 or more, which have a turn in common; a block of rows is a unit or a part
// of one.
template <int kKeys, int kRows>
struct Walk {
  static constexpr int kUnit = kRows > kTurnUnit ? kRows : kTurnUnit;

  Visibility visible;
  Segments segments;
  int block;       // of keys
  int begin, end;  // rows, whole units
  int q_rows, k_rows, group;

  struct Place {
    int head, row;  // head == group: the end
  };

  Walk() = default;
  __device__ __forceinline__ Walk(const AttentionProblem& p, const Sequence& s, int block)
      : visible(p, s),
        segments(p, s),
        block(block),
        q_rows(s.q_rows),
        k_rows(s.k_rows),
        group(p.group) {
    const Visibility::Rows rows = units(block);
    begin = rows.begin;
    end = rows.end;
  }

  // Units that a block of keys may meet, segments aside.
  __device__ __forceinline__ Visibility::Rows units(int other) const {
    const Visibility::Rows rows = visible.rows_of_keys(other * kKeys, (other + 1) * kKeys);
    if (rows.begin >= rows.end) return {0, 0};
    return {rows.begin / kUnit * kUnit, (rows.end + kUnit - 1) / kUnit * kUnit};
  }

  __device__ __forceinline__ Overlap overlap(int other, int unit) const {
    return segments.overlap(unit, min(unit + kUnit, q_rows), other * kKeys,
                            min((other + 1) * kKeys, k_rows));
  }

  // The first place from `at`, which begins a unit, that is not ruled out.
  __device__ __forceinline__ Place settle(Place at) const {
    for (; at.head < group; ++at.head, at.row = begin)
      for (; at.row < end; at.row += kUnit)
        if (overlap(block, at.row) != Overlap::kNone) return at;
    return at;
  }
  __device__ __forceinline__ Place first() const { return settle({0, begin}); }
  __device__ __forceinline__ Place after(Place at) const {
    at.row += kRows;
    if (segments.any()) return begins_unit(at) ? settle(at) : at;
    return at.row < end ? at : Place{at.head + 1, begin};
  }
  // Whether segment ids hide some of a block of rows.
  __device__ __forceinline__ bool by_segment(Place at) const {
    return segments.any() && overlap(block, at.row / kUnit * kUnit) == Overlap::kSome;
  }
  // Rows that see every key of [j0, j1), segments aside.
  __device__ __forceinline__ Visibility::Rows whole(int j0, int j1) const {
    const Visibility::Rows last = visible.rows_of_keys(j1 - 1, j1);
    const int j = max(j0, visible.sink_tokens);  // the first that a window bounds
    return j < j1 ? Visibility::Rows{last.begin, min(last.end, visible.rows_of_keys(j, j + 1).end)}
                  : last;
  }
  __device__ __forceinline__ bool at_end(Place at) const { return at.head >= group; }
  static __device__ __forceinline__ bool begins_unit(Place at) {
    return kRows == kUnit || at.row % kUnit == 0;
  }
  static __device__ __forceinline__ bool ends_unit(Place at) {
    return kRows == kUnit || (at.row + kRows) % kUnit == 0;
  }

  // How many blocks of keys before this one meet the unit. All lanes of a warp call it.
  __device__ __forceinline__ int turn(int unit, int lane) const {
    int count = 0;
    for (int first = 0; first < block; first += 32) {
      const int other = first + lane;
      bool meets = false;
      if (other < block) {
        const Visibility::Rows rows = units(other);
        meets = rows.begin <= unit && unit < rows.end && overlap(other, unit) != Overlap::kNone;
      }
      count += __popc(__ballot_sync(0xffffffffu, meets));
    }
    return count;
  }
};

// Where the turn of a unit is counted.
__device__ __forceinline__ int* turn_counter(const BackwardParams& p, const Sequence& s, int head,
                                             int unit) {
  const int64_t row = s.q_first - static_cast<int64_t>(s.pack) * p.q_rows;
  const int64_t first = row / kTurnUnit + s.index % p.sequences;
  return p.turns + (static_cast<int64_t>(s.pack) * p.heads + head) * p.turn_count + first +
         unit / kTurnUnit;
}

// One thread waits; a barrier must follow.
__device__ __forceinline__ void wait_for_turn(const int* counter, int turn) {
  int now;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(now) : "l"(counter) : "memory");
  } while (now != turn);
}

// One thread passes the turn on, after a barrier.
__device__ __forceinline__ void pass_turn(int* counter) {
  __threadfence();
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;\n" ::"l"(counter) : "memory");
}

}  // namespace jax_baracuda
