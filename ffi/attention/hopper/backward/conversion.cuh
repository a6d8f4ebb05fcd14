// From the sums to dQ within the main kernel, by warps beside those that compute: when all tiles of a row (of a sequence and
// key/value head) have added to the sums of its query rows, these are in the L2 cache still. Sums that have been read are
// cleared for a later row.
#pragma once

#include "attention/backward/walk.cuh"
#include "attention/hopper/backward/traits.cuh"
#include "attention/hopper/epilogue.cuh"
#include "device/bulk.cuh"
#include "device/elect.cuh"
#include "device/math.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

__device__ __forceinline__ void wait_for_count(const int* counter, int count) {
  int now;
  while (true) {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(now) : "l"(counter) : "memory");
    if (now >= count) break;
    __nanosleep(500);
  }
  fence_async_all();
}

// One thread, after what it knows to have been added.
__device__ __forceinline__ void pass_turns(int* counter, int turns) {
  __threadfence();
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;\n" ::"l"(counter), "r"(turns) : "memory");
}

// Says, for the warpgroups that add, which tiles' terms have been added: the fence would cost them time. One thread.
template <class Traits>
__device__ __forceinline__ void tell_done(const HopperBackwardParams& p,
                                          typename Traits::Control& control) {
  constexpr int kGroups = Traits::kSumGroup ? 1 : Traits::kGroups;
  for (int parity = 0;; parity ^= 1) {
    for (int i = 0; i < kGroups; ++i) mbarrier_wait(shared_address(&control.added[i].full), parity);
    const int row = control.added[0].row, parts = control.added[0].parts;
    if (row < 0) return;
    for (int i = 0; i < kGroups; ++i) mbarrier_arrive(shared_address(&control.added[i].empty));
    fence_async_all();
    pass_turns(p.done + row, parts);
  }
}

// A warp, with room for kSlots loads under way. What it knows of its row block is in shared memory: warps of the loading
// warpgroup have few registers.
template <class Traits, int kSlots>
struct QueryGradientConverter {
  using T = typename Traits::T;
  static constexpr int kColumns = Traits::kQueryColumns, kRows = Traits::kRows;
  // 16 rows and 32 columns lie together and are loaded at once; so many make a part, and a row block.
  static constexpr int kLoadBytes = Traits::kConversionBytes;
  static constexpr int kLoadsOfPart = kColumns / 32, kLoads = Traits::kQueryParts * kLoadsOfPart;
  static_assert(kLoads % (2 * kSlots) == 0, "barriers have the same parity in every row block");

  const HopperBackwardParams& p;
  typename Traits::Control& control;
  const uint32_t shared;
  const int index, lane;

  __device__ __forceinline__ QueryGradientConverter(const HopperBackwardParams& p,
                                                    typename Traits::Control& control,
                                                    uint32_t shared, int index, int lane)
      : p(p), control(control), shared(shared), index(index), lane(lane) {}

  __device__ __forceinline__ QueryGradientPlace& place() const { return control.place[index]; }
  // The buffers of consumers' warps come first, then those of the warps beside them.
  __device__ __forceinline__ uint32_t buffer(int slot) const {
    const int at = index < 8 ? index * Traits::kWarpQueryBytes
                             : Traits::kWarpBuffers * Traits::kWarpQueryBytes +
                                   (index - 8) * (kSlots * kLoadBytes);
    return shared + Traits::kSumOffset + at + slot * kLoadBytes;
  }
  __device__ __forceinline__ uint32_t full(int slot) const {
    return shared_address(&control.place_full[index][slot]);
  }

  // Finds the row block of a ticket; false if there are no more. One lane.
  __device__ __forceinline__ bool find(int ticket) const {
    const BackwardParams& problem = p.problem;
    const int row = ticket / p.row_blocks, block = ticket - row * p.row_blocks;
    if (row >= p.rows) return false;
    const int pack = row / problem.kv_heads;
    const int head = (row - pack * problem.kv_heads) * problem.group + block / problem.turn_count;
    const int first = block % problem.turn_count * kRows;
    QueryGradientPlace& to = place();
    to.row_of_tiles = row;
    to.sum = problem.dq_sum + (static_cast<int64_t>(row % p.sum_rows) * p.row_blocks + block) *
                                  (kRows * Traits::kDim);
    to.to = ((static_cast<int64_t>(pack) * problem.q_rows + first) * problem.heads + head) *
            problem.dim;
    to.rows = problem.q_rows - first;
    to.counted = problem.query_lengths ? problem.query_lengths[pack] - first : to.rows;
    return true;
  }

  __device__ __forceinline__ void load(int i) const {
    if (!elect_lane()) return;
    const uint32_t barrier = full(i % kSlots);
    mbarrier_arrive_expect(barrier, kLoadBytes);
    bulk_load(buffer(i % kSlots), place().sum + i * (kLoadBytes / 4), kLoadBytes, barrier);
  }

  // Whether another row has the same sums after this one.
  __device__ __forceinline__ bool is_shared() const {
    return place().row_of_tiles + p.sum_rows < p.rows;
  }
  __device__ __forceinline__ void clear(int i) const {
    if (!elect_lane() || !is_shared()) return;
    bulk_store(place().sum + i * (kLoadBytes / 4), shared + Traits::kZeroOffset, kLoadBytes);
    bulk_commit();
  }

  // Rows `row`, a lane's of 8, and 32 columns that lie at `from`.
  __device__ __forceinline__ void store(uint32_t from, int row, int column) const {
    const float scale = gradient_scale<Traits>(p.problem, p.problem.scale);
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 at = load_shared_float2(from + i * 512);
      words[i] = pack_pair<T>(at.x * scale, at.y * scale);
    }
    transpose_quad(words, lane);
    if (row >= place().rows || column >= p.problem.dim) return;
    const bool counts = row < place().counted;
    T* to = static_cast<T*>(p.problem.dq) + place().to +
            static_cast<int64_t>(row) * (p.problem.heads * p.problem.dim) + column;
    *reinterpret_cast<uint4*>(to) =
        counts ? make_uint4(words[0], words[1], words[2], words[3]) : make_uint4(0, 0, 0, 0);
  }
  __device__ __forceinline__ void store(int i) const {
    constexpr bool kByColumns = Traits::kSplit == QuerySplit::kColumns;
    const int part = i / kLoadsOfPart, column = i % kLoadsOfPart * 32;
#pragma unroll 1
    for (int half = 0; half < 2; ++half)
      store(buffer(i % kSlots) + lane * 16 + half * 8,
            (kByColumns ? part % 4 : part) * 16 + half * 8 + lane / 4,
            (kByColumns ? part / 4 * kColumns : 0) + column + lane % 4 * 8);
  }

  __device__ __forceinline__ void convert() const {
#pragma unroll 1
    for (int i = 0; i < kSlots; ++i) load(i);
#pragma unroll 1
    for (int i = 0; i < kLoads; ++i) {
      mbarrier_wait(full(i % kSlots), i / kSlots & 1);
      clear(i);
      store(i);
      __syncwarp();  // the buffer has been read
      if (i + kSlots < kLoads) load(i + kSlots);
    }
  }

  // Says that the sums of a row block are clear again. The lane that has cleared them.
  __device__ __forceinline__ void tell_clear(int row) const {
    bulk_wait();
    fence_async_all();
    pass_turn(p.converted + row);
  }

  __device__ __forceinline__ void run() const {
    if (elect_lane()) place().cleared = -1;
#pragma unroll 1
    while (true) {
      bool more = false;
      if (elect_lane()) {
        more = find(atomicAdd(p.ticket, 1));
        if (place().cleared >= 0) tell_clear(place().cleared);
        place().cleared = is_shared() ? place().row_of_tiles : -1;
      }
      if (!__any_sync(0xffffffffu, more)) return;
      __syncwarp();
      wait_for_count(p.done + place().row_of_tiles, p.tiles * p.parts);
      __syncwarp();
      convert();
    }
  }
};

}  // namespace jax_baracuda
