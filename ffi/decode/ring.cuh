// The decode kernel whose warps have several tiles of keys and values under way: each has a ring of them in shared
// memory, which the copy engine fills. What is asked for is far ahead of the arithmetic, so that memory has work from the
// first microsecond on, at the end of a row and while the parts of a row are merged. For caches whose rows lie side by side, or
// four at a time in pages, and are as wide as the tile, 16-bit elements and up to eight query heads a group; sm_90 and newer.
#pragma once

#include <cstdint>

#include "decode/config.h"
#include "decode/kernel.cuh"
#include "decode/merge.cuh"
#include "decode/params.h"
#include "decode/schedule.cuh"
#include "decode/shared.cuh"
#include "decode/source.cuh"
#include "device/bulk.cuh"
#include "device/cluster.cuh"
#include "device/mbarrier.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

// The tiles of one warp. A stage holds its keys one behind the other, then its values, four rows at a time 32 bytes
// further than they would lie: the lanes that read at the same time read rows four apart, from different banks.
//
// kWholeKeys: the keys of a tile lie side by side and are one copy. With four rows each the copies of short rows are so many
// that the copy engine does not keep up; for rows of 256 bytes it does.
template <class Tile, bool kWholeKeys>
class WarpRing {
 public:
  using Element = typename Tile::Element;
  static constexpr int kRowBytes = Tile::kDimTile * sizeof(Element);
  static constexpr int kFourRows = 4 * kRowBytes + 32;
  static constexpr int kKeyBytes = Tile::kTokens * kRowBytes;
  static constexpr int kStageBytes = kKeyBytes + Tile::kTokens / 4 * kFourRows;

  // Called by full warps.
  __device__ WarpRing(const DecodeParams& p, void* shared, int warp) : stages_(p.ring_stages) {
    const uint32_t rings = shared_address(shared) + p.ring_offset;
    tiles_ = rings + warp * stages_ * kStageBytes;
    barriers_ = rings + (p.token_warps * kStageBytes + warp * 8) * stages_;
    if (threadIdx.x % 32 < stages_) mbarrier_init(barriers_ + threadIdx.x % 32 * 8, 1);
    mbarrier_init_fence();
    __syncwarp();
  }

  // Starts to bring the first `valid` of the keys where the source stands, and their values, to the stage that was read
  // longest ago. All lanes have read it. A lane asks for four rows, or for all keys.
  template <class Fours>
  __device__ __forceinline__ void ask(const DecodeParams& p, const Fours& source, int valid) {
    const int lane = threadIdx.x % 32;
    const int rows = min(max(valid, 0), Tile::kTokens);
    const uint32_t barrier = barriers_ + asked_ * 8;
    const uint32_t stage = tiles_ + asked_ * kStageBytes;
    if (lane == 0) mbarrier_arrive_expect(barrier, 2 * rows * kRowBytes);
    __syncwarp();
    const bool of_values = lane >= kKeyCopies;
    const int each = of_values || !kWholeKeys ? 4 : Tile::kTokens;
    const int row = kWholeKeys ? (of_values ? (lane - 1) * 4 : 0) : lane * 4 % Tile::kTokens;
    const int count = min(rows - row, each);
    const int64_t from = source.find_four(p, row / 4);
    if (lane < kKeyCopies + kFours && count > 0) {
      const Element* store = static_cast<const Element*>(of_values ? p.value : p.key);
      const uint32_t to = stage + (of_values ? kKeyBytes + row / 4 * 32 : 0) + row * kRowBytes;
      bulk_load(to, store + from, count * kRowBytes, barrier, evict_first_policy());
    }
    asked_ = asked_ + 1 == stages_ ? 0 : asked_ + 1;
  }

  // Waits for the tile that was asked for longest ago.
  __device__ __forceinline__ void await() const { mbarrier_wait(barriers_ + read_ * 8, parity_); }
  __device__ __forceinline__ void read(Tile& tile, int valid) const {
    const uint32_t stage = tiles_ + read_ * kStageBytes;
    tile.read_keys(stage);
    tile.read_values(stage + kKeyBytes, kFourRows, valid);
  }
  // This warp will not read the tile again.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (++read_ < stages_) return;
    read_ = 0;
    parity_ ^= 1;
  }

 private:
  static constexpr int kFours = Tile::kTokens / 4;  // of a tile's keys, or values
  static constexpr int kKeyCopies = kWholeKeys ? 1 : kFours;
  static_assert(kKeyCopies + kFours <= 32);

  int stages_;
  uint32_t tiles_, barriers_;
  int asked_ = 0, read_ = 0, parity_ = 0;
};

template <class Tile, class Fours, int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads, 1)
    decode_ring_kernel(const __grid_constant__ DecodeParams p) {
#if __CUDA_ARCH__ >= 900
  constexpr Keys kKeys = Fours::kKeys;
  extern __shared__ uint4 shared_memory[];
  const DecodeShared<Tile> shared(shared_memory, p);
  const int warp = threadIdx.x / 32;
  const int token_offset = warp * Tile::kTokens;
  Fours source(p, token_offset, shared_memory);
  WarpRing<Tile, Fours::kAdjacent && Tile::kDimTile == 64> ring(p, shared_memory, warp);
  Cursor cursor = first_chunk<kKeys>(p, blockIdx.x);

  // What is asked for runs ahead of what is read by as many chunks as a ring has stages.
  Cursor ahead = cursor;
  source.start(p, ahead);
  const auto ask_next = [&] {
    if (ahead.remaining <= 0) return;
    ring.ask(p, source, ahead.limit() - (ahead.begin(p) + token_offset));
    ahead.advance<kKeys>(p);
    source.move(p, ahead);
  };
  // Behind all these keys and values the query would come when they have, with nothing under way any more.
  if (p.cluster || cursor.remaining > 0) stage_query(p, cursor.row, shared, 0);
#pragma unroll 1
  for (int i = 0; i < p.ring_stages; ++i) ask_next();
  launch_dependents();
  if (p.cluster)
    enter_cluster(p, cursor.row, shared);
  else if (cursor.remaining == 0)
    return;
  Tile tile;
  copy_async_wait_all();
  __syncthreads();

  int buffer = 0;
  int merge_buffer = 0;
  int segment_begin = cursor.chunk;
  bool row_begins = true;
#pragma unroll 1
  while (true) {
    if (row_begins && cursor.remaining > cursor.request.chunks - cursor.chunk) {
      Row after = cursor.row;
      after.advance(p);
      stage_query(p, after, shared, buffer ^ 1);
    }
    const int token = cursor.begin(p) + token_offset;
    const int limit = cursor.limit();
    if (cursor.remaining > 0) {  // an empty piece of a cluster's row was never asked for
      ring.await();
      if (token < limit) {
        ring.read(tile, limit - token);
        tile.multiply_keys(shared.query_of(p, buffer, 0));
        tile.update_softmax(p, p.alibi_slopes == nullptr ? nullptr : shared.slopes_of(p, buffer, 0),
                            token, limit, cursor.request.length - 1);
        tile.multiply_values();
      }
      ring.release();
      ask_next();
    }
    Cursor next = cursor;
    next.advance<kKeys>(p);
    const bool more = next.remaining > 0;
    row_begins = !more || next.chunk == 0;
    if (row_begins) {
      const int result = warp * p.block_heads;
      tile.store(shared.out + merge_buffer + result * DecodeShared<Tile>::kRow,
                 shared.stats + merge_buffer + 2 * result, cursor.row.heads(p));
      copy_async_wait_all();
      __syncthreads();
      merge_warps(p, cursor.row, shared, merge_buffer, destination(p, cursor, segment_begin));
      if (!more) break;
      if (p.merge_stride == 0) __syncthreads();
      merge_buffer = p.merge_stride - merge_buffer;
      tile.reset();
      buffer ^= 1;
      segment_begin = 0;
    }
    cursor = next;
  }
  if (p.cluster) merge_cluster(p, cursor.row, shared);
#endif
}

}  // namespace jax_baracuda
