// From the sums to dQ within the main kernel, by warps beside those that compute: when all tiles of a row (of a sequence and
// key/value head) have added to the sums of its query rows, these are in the L2 cache still. Sums that have been read are
// cleared for a later row.
#pragma once

#include "attention/backward/walk.cuh"
#include "attention/hopper/backward/traits.cuh"
#include "attention/hopper/epilogue.cuh"
#include "device/bulk.cuh"
#include "device/math.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

__device__ __forceinline__ void wait_for_count(const int* counter, int count) {
  int now;
  while (true) {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(now) : "l"(counter) : "memory");
    if (now >= count) break;
    __nanosleep(300);
  }
  fence_async_all();
}

// Says, for the consumers, which tiles' terms have been added: the fence would cost them time. One thread.
template <class Traits>
__device__ __forceinline__ void tell_done(const HopperBackwardParams& p,
                                          typename Traits::Control& control) {
  for (int parity = 0;; parity ^= 1) {
    for (AddedTile& added : control.added) mbarrier_wait(shared_address(&added.full), parity);
    const int row = control.added[0].row;
    if (row < 0) return;
    for (AddedTile& added : control.added) mbarrier_arrive(shared_address(&added.empty));
    fence_async_all();
    pass_turn(p.done + row);
  }
}

// A warp, with a buffer for the part of a sum that a warp of the consumers adds at once. What it knows of its piece is in
// shared memory: warps of the loading warpgroup have few registers.
template <class Traits>
struct QueryGradientConverter {
  using T = typename Traits::T;
  static constexpr int kColumns = Traits::kQueryColumns, kRows = Traits::kRows;
  static constexpr int kBytes = Traits::kWarpQueryBytes;
  static constexpr int kPieces = Traits::kQueryParts / 4;  // of a row block

  const HopperBackwardParams& p;
  QueryGradientPiece& piece;
  const uint32_t buffer, zeros, full;
  const int lane;

  __device__ __forceinline__ QueryGradientConverter(const HopperBackwardParams& p,
                                                    typename Traits::Control& control,
                                                    uint32_t shared, int index, int lane)
      : p(p),
        piece(control.piece[index]),
        buffer(shared + Traits::kSumOffset + index * kBytes),
        zeros(shared + Traits::kZeroOffset),
        full(shared_address(&control.piece_full[index])),
        lane(lane) {}

  // Finds the piece of a ticket; false if there are no more. Lane 0.
  __device__ __forceinline__ bool find(int ticket) const {
    constexpr bool kByColumns = Traits::kSplit == QuerySplit::kColumns;
    const BackwardParams& problem = p.problem;
    const int blocks = problem.group * problem.turn_count;  // of a row of tiles
    const int row = ticket / (blocks * kPieces);
    piece.row_of_tiles = row;
    if (row >= p.rows) return false;
    const int block = ticket / kPieces - row * blocks, which = ticket % kPieces;
    const int pack = row / problem.kv_heads;
    const int head = row % problem.kv_heads * problem.group + block / problem.turn_count;
    const int first = block % problem.turn_count * kRows + (kByColumns ? 0 : 64 * which);
    const int column = kByColumns ? which * kColumns : 0;
    piece.sum = problem.dq_sum +
                (static_cast<int64_t>(row % p.sum_rows) * blocks + block) * (kRows * Traits::kDim) +
                which * kBytes;  // 4 parts of that many bytes
    piece.to = ((static_cast<int64_t>(pack) * problem.q_rows + first) * problem.heads + head) *
                   problem.dim +
               column;
    piece.rows = problem.q_rows - first;
    piece.counted =
        problem.query_lengths ? problem.query_lengths[pack] - first : problem.q_rows - first;
    piece.columns = problem.dim - column;
    return true;
  }

  // The next part, of four, to the buffer.
  __device__ __forceinline__ void load(int part) const {
    if (lane == 0) {
      mbarrier_arrive_expect(full, kBytes);
      bulk_load(buffer, piece.sum, kBytes, full);
    }
    mbarrier_wait(full, part & 1);
  }

  // Lane 0.
  __device__ __forceinline__ void clear() const {
    bulk_store(piece.sum, zeros, kBytes);
    bulk_commit();
  }

  // Rows lane / 4 + `first_row`, of the piece, and 32 columns, that lie at `from` in the buffer.
  __device__ __forceinline__ void store(uint32_t from, int first_row, int first_column) const {
    const int row = first_row + lane / 4, column = first_column + 8 * (lane % 4);
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 at = load_shared_float2(from + i * 512 + lane * 16);
      words[i] = pack_pair<T>(at.x * p.problem.scale, at.y * p.problem.scale);
    }
    transpose_quad(words, lane);
    if (row >= piece.rows || column >= piece.columns) return;
    const bool counts = row < piece.counted;
    T* to = static_cast<T*>(p.problem.dq) + piece.to +
            static_cast<int64_t>(row) * p.problem.heads * p.problem.dim + column;
    *reinterpret_cast<uint4*>(to) =
        counts ? make_uint4(words[0], words[1], words[2], words[3]) : make_uint4(0, 0, 0, 0);
  }

  __device__ __forceinline__ bool is_cleared() const {
    return piece.row_of_tiles + p.sum_rows < p.rows;
  }

  __device__ __forceinline__ void convert() const {
#pragma unroll 1
    for (int part = 0; part < 4; ++part) {
      load(part);
      if (lane == 0 && is_cleared()) clear();
#pragma unroll 1
      for (int i = 0; i < kColumns / 16; ++i)
        store(buffer + i / 2 * 2048 + i % 2 * 8, 16 * part + i % 2 * 8, i / 2 * 32);
      __syncwarp();  // the buffer and the place have been read
      if (lane == 0) piece.sum += kBytes / 4;
      __syncwarp();
    }
  }

  __device__ __forceinline__ void run() const {
#pragma unroll 1
    while (true) {
      bool more = false;
      if (lane == 0) more = find(atomicAdd(p.ticket, 1));
      if (!__any_sync(0xffffffffu, more)) return;
      __syncwarp();
      wait_for_count(p.done + piece.row_of_tiles, p.tiles);
      convert();
      if (lane == 0 && is_cleared()) {
        bulk_wait();
        fence_async_all();
        pass_turn(p.converted + piece.row_of_tiles);
      }
      __syncwarp();
    }
  }
};

}  // namespace jax_baracuda
