// Few rows: the weights stream through once, at the speed of memory.
//
// A CTA has 64 (or 32) channels a warp next to each other and several warps one behind the other in depth; the CTAs of a
// cluster share the depth again. Every thread copies exactly the weights that it will itself multiply to shared memory,
// stages ahead; warps next to each other share x. A stage of a warp is its channels x 128 input channels.
#pragma once

#include "device/cluster.cuh"
#include "device/divide.cuh"
#include "device/fragment.cuh"
#include "device/mbarrier.cuh"
#include "device/memory.cuh"
#include "device/tile.cuh"
#include "int4/dequantise.cuh"
#include "int4/product.cuh"
#include "int4/small_sums.cuh"

namespace jax_baracuda {

// kBlocks: of 8 rows of x. kWarpBlocks: of 16 channels that a warp has, 4 or 2. kScaleSteps: k-steps of 16 that share a
// scale, 2, 4 or 8 (groups of 32, 64, more).
template <class T_, int kBlocks_, int kChannelWarps_, int kDepthWarps_, int kStages_, int kCtas_,
          int kWarpBlocks_, int kScaleSteps_, int kV_ = 0>
struct SmallTraits {
  using T = T_;
  static constexpr int kV = kV_;
  static constexpr int kWarpBlocks = kWarpBlocks_, kWarpChannels = 16 * kWarpBlocks;
  static constexpr int kBlocks = kBlocks_, kChannelWarps = kChannelWarps_,
                       kDepthWarps = kDepthWarps_;
  static constexpr int kStages = kStages_, kCtas = kCtas_, kScaleSteps = kScaleSteps_;
  static constexpr int kRows = 8 * kBlocks, kChannels = kWarpChannels * kChannelWarps;
  static constexpr int kWarps = kChannelWarps * kDepthWarps, kThreads = 32 * kWarps;
  static constexpr int kUnit = 2;  // tiles of weights that a warp has in a stage
  static constexpr int kScaleRows = 8 / kScaleSteps;

  // A stage of a warp: weights, scales, zero points; of the CTA: those and x.
  static constexpr int kTilePart = kWarpBlocks * 512;  // bytes of a tile that a warp has
  static constexpr int kScalesOffset = kUnit * kTilePart;
  // Of 16 bytes: two of scales a row and block, then one of zero points.
  static constexpr int kScalePieces = 3 * kWarpBlocks * kScaleRows;
  static constexpr int kZerosOffset = kScalesOffset + kScaleRows * kWarpChannels * 2;
  static constexpr int kWarpBytes = kScalesOffset + kScalePieces * 16;
  using Rows = Tile<T, kRows, kUnit * kDepth>;
  static constexpr int kRowsOffset = (kWarps * kWarpBytes + 127) / 128 * 128;
  static constexpr int kStageBytes = kRowsOffset + kDepthWarps * Rows::kBytes;

  using Sums = SmallSums<kRows, kWarpBlocks, kChannelWarps, kDepthWarps, kWarpBytes, kStageBytes>;
  static constexpr int kSumsOffset = kStages * kStageBytes;
  static constexpr int kSharedBytes = kSumsOffset + Sums::kBytes;
};

template <class Traits>
struct SmallKernel {
  using T = typename Traits::T;
  using Rows = typename Traits::Rows;
  using Raw = RawNibbles<T>;
  static constexpr bool kRowsAsA = Traits::kV & 1, kEarly = Traits::kV & 2, kHalves = Traits::kV & 4;
  static constexpr int kBlocks = Traits::kBlocks, kStages = Traits::kStages,
                       kDepthWarps = Traits::kDepthWarps, kWarpBlocks = Traits::kWarpBlocks;

  const Int4Params& p;
  unsigned char* const shared;
  const uint32_t base = shared_address(shared);
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const int channel_warp = warp % Traits::kChannelWarps, depth_warp = warp / Traits::kChannelWarps;
  const int first_row, end_unit;

  // Of the stage that is loaded next: this warp's unit, its weights, the columns of x that this thread copies.
  int load_unit;
  const uint8_t* load_weights;
  const int first_channel;

  float sums[kWarpBlocks][kBlocks][4] = {};  // of 16 channels, 8 rows of x

  __device__ __forceinline__ SmallKernel(const Int4Params& p, unsigned char* shared, int split,
                                         int channel_block, int row_block)
      : p(p),
        shared(shared),
        first_row(row_block * Traits::kRows),
        end_unit(first_unit(split + 1)),
        load_unit(first_unit(split) + depth_warp),
        first_channel(
            min((channel_block * Traits::kChannelWarps + channel_warp) * Traits::kWarpChannels,
                p.strips * kStrip - Traits::kWarpChannels)) {
    load_weights =
        p.packed +
        (static_cast<int64_t>(first_channel / kStrip) * p.depth_tiles + load_unit * Traits::kUnit) *
            kTileBytes +
        first_channel % kStrip * 32 + lane * 16;
    if (Traits::kV & 8) load_weights = p.packed + first_channel % kStrip * 32 + lane * 16;
  }

  __device__ __forceinline__ int first_unit(int split) const {
    return split * p.split_units + min(split, p.longer_splits);
  }

  // Warps next to each other share a unit of x, and wait for each other alone.
  static constexpr int kSharing = 32 * Traits::kChannelWarps;
  __device__ __forceinline__ void wait_for_sharing() const {
    if constexpr (Traits::kChannelWarps == 1)
      __syncwarp();
    else if constexpr (kDepthWarps == 1)
      __syncthreads();
    else
      named_barrier_sync(1 + depth_warp, kSharing);
  }

  // Rows of x that are not there are never copied: they make no sum that counts.
  __device__ __forceinline__ void load_rows(uint32_t stage, int load_unit) const {
    const Rows to(stage + Traits::kRowsOffset + depth_warp * Rows::kBytes);
    const int thread = channel_warp * 32 + lane, column = thread % Rows::kPieces * 8;
    const bool valid = load_unit * Rows::kCols + column < p.columns;
    const T* from = static_cast<const T*>(p.x) + (valid ? load_unit * Rows::kCols + column : 0);
    constexpr int kStep = kSharing / Rows::kPieces;
#pragma unroll
    for (int at = 0; at < Traits::kRows; at += kStep) {
      const int row = at + thread / Rows::kPieces;
      if (row < Traits::kRows && first_row + row < p.rows)
        copy_async_16(to.piece(row, thread % Rows::kPieces),
                      from + static_cast<int64_t>(first_row + row) * p.columns, valid);
    }
  }

  // Half of the columns.
  __device__ __forceinline__ void load_half_rows(uint32_t stage, int load_unit, int half) const {
    const Rows to(stage + Traits::kRowsOffset + depth_warp * Rows::kBytes);
    const int piece = half * 8 + lane % 8, column = load_unit * Rows::kCols + piece * 8;
    const bool valid = column < p.columns;
    const T* from = static_cast<const T*>(p.x) + (valid ? column : 0);
#pragma unroll
    for (int at = 0; at < Traits::kRows; at += 4) {
      const int row = at + lane / 8;
      if (first_row + row < p.rows)
        copy_async_16(to.piece(row, piece), from + static_cast<int64_t>(first_row + row) * p.columns, valid);
    }
  }

  __device__ __forceinline__ void load_scales(uint32_t to) const {
    constexpr int kScaleRows = Traits::kScaleRows;
    const int width = p.strips * kStrip, tile = load_unit * Traits::kUnit;
#pragma unroll
    for (int at = 0; at < Traits::kScalePieces; at += 32) {
      const int piece = at + lane;
      if (piece >= Traits::kScalePieces) break;
      const bool scale = piece < 2 * kWarpBlocks * kScaleRows;
      const int row = kScaleRows == 1 ? 0
                      : scale         ? piece / (2 * kWarpBlocks)
                                      : piece / kWarpBlocks - 2 * kScaleRows;
      const int of_tile = tile + (kScaleRows == 4 ? row / 2 : row);
      const bool valid = kScaleRows == 1 || of_tile < p.depth_tiles;
      const int group = kScaleRows == 4 ? tile * 2 + row : divide(of_tile, p.group_tiles);
      const uint8_t* from = scale ? static_cast<const uint8_t*>(p.scales) +
                                        (first_channel + piece % (2 * kWarpBlocks) * 8) * 2
                                  : p.zeros + first_channel + piece % kWarpBlocks * 16;
      copy_async_16(to + piece * 16,
                    from + static_cast<int64_t>(group) * (scale ? 2 * width : width), valid);
    }
  }

  // Starts to copy the next stage, in two groups: what the first tile of each unit needs, and the other tiles.
  __device__ __forceinline__ void load(int stage_index) {
    const uint32_t stage = base + stage_index * Traits::kStageBytes;
    const uint32_t own = stage + warp * Traits::kWarpBytes + lane * 16;
    const bool active = load_unit < end_unit;
    if (active) {
#pragma unroll
      for (int block = 0; block < kWarpBlocks; ++block)
        copy_async_16(own + block * 512, load_weights + block * 512, true);
      load_scales(own - lane * 16 + Traits::kScalesOffset);
      load_rows(stage, load_unit);
    }
    copy_async_commit();
    if (active) {
      const uint32_t second = own + Traits::kTilePart;
      if (load_unit * Traits::kUnit + 1 < p.depth_tiles) {
#pragma unroll
        for (int block = 0; block < kWarpBlocks; ++block)
          copy_async_16(second + block * 512, load_weights + kTileBytes + block * 512, true);
      } else {
#pragma unroll
        for (int block = 0; block < kWarpBlocks; ++block)
          store_shared_16(second + block * 512, make_uint4(0, 0, 0, 0));
      }
    }
    copy_async_commit();
    load_unit += kDepthWarps;
    if (!(Traits::kV & 8)) load_weights += kDepthWarps * Traits::kUnit * kTileBytes;
  }

  // Early refill: what this warp alone reads is loaded as soon as it was read.
  __device__ __forceinline__ void refill_first(int stage_index) const {
    if (load_unit < end_unit) {
      const uint32_t own = base + stage_index * Traits::kStageBytes + warp * Traits::kWarpBytes + lane * 16;
#pragma unroll
      for (int block = 0; block < kWarpBlocks; ++block)
        copy_async_16(own + block * 512, load_weights + block * 512, true);
      if constexpr (kHalves) load_half_rows(base + stage_index * Traits::kStageBytes, load_unit, 0);
    }
    copy_async_commit();
  }
  __device__ __forceinline__ void refill_second(int stage_index) {
    const uint32_t stage = base + stage_index * Traits::kStageBytes;
    const uint32_t own = stage + warp * Traits::kWarpBytes + lane * 16;
    if (load_unit < end_unit) {
      const uint32_t second = own + Traits::kTilePart;
      load_scales(own - lane * 16 + Traits::kScalesOffset);
      if (load_unit * Traits::kUnit + 1 < p.depth_tiles) {
#pragma unroll
        for (int block = 0; block < kWarpBlocks; ++block)
          copy_async_16(second + block * 512, load_weights + kTileBytes + block * 512, true);
      } else {
#pragma unroll
        for (int block = 0; block < kWarpBlocks; ++block)
          store_shared_16(second + block * 512, make_uint4(0, 0, 0, 0));
      }
      if constexpr (kHalves) load_half_rows(stage, load_unit, 1); else if constexpr (kSharing == 32) load_rows(stage, load_unit);
    }
    copy_async_commit();
    load_unit += kDepthWarps;
    if (!(Traits::kV & 8)) load_weights += kDepthWarps * Traits::kUnit * kTileBytes;
  }
  // Of the unit before the next one.
  __device__ __forceinline__ void refill_rows(int stage_index) const {
    const int unit = load_unit - kDepthWarps;
    if (unit < end_unit) load_rows(base + stage_index * Traits::kStageBytes, unit);
    copy_async_commit();
  }
  __device__ __forceinline__ void begin_early() {
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) {
      if constexpr (kSharing > 32) { if (stage > 0) refill_rows(stage - 1); }
      refill_first(stage);
      refill_second(stage);
    }
  }
  __device__ __forceinline__ void run_early() {
    int unit = load_unit - kStages * kDepthWarps;
    int stage = 0, last = kStages - 1;
    Group group;
    for (; unit < end_unit; unit += kDepthWarps) {
      copy_async_wait<(kHalves && Traits::kScaleSteps == 8 ? 2 * kStages - 1 : kSharing > 32 ? 2 + 3 * (kStages - 2) : 2 * (kStages - 1))>();
      wait_for_sharing();
      if constexpr (kSharing > 32) refill_rows(last);
      multiply_tile<0>(stage, group);
      if constexpr (kHalves) __syncwarp();
      refill_first(stage);
      if constexpr (kHalves) { copy_async_wait<2 * kStages - 1>(); __syncwarp(); }
      multiply_tile<1>(stage, group);
      __syncwarp();
      refill_second(stage);
      last = stage;
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    copy_async_wait_all();
    __syncwarp();
  }

  // B operands of 64 columns.
  __device__ __forceinline__ void read_rows(uint32_t (&b)[4][kBlocks][2], const Rows& rows,
                                            int half) const {
    if constexpr (kBlocks == 1 || kRowsAsA) {
#pragma unroll
      for (int step = 0; step < 4; step += 2)
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
        uint32_t r[4];
        load_matrices(r, rows.piece(n * 8 + lane % 8, half * 8 + step * 2 + lane / 8));
        b[step][n][0] = r[0], b[step][n][1] = r[1], b[step + 1][n][0] = r[2],
        b[step + 1][n][1] = r[3];
      }
    } else {
#pragma unroll
      for (int step = 0; step < 4; ++step)
#pragma unroll
        for (int n = 0; n < kBlocks; n += 2) {
          const auto pair = Mma<T>::load_b(rows, n * 8, half * kDepth + step * 16, lane);
          b[step][n][0] = pair.r[0], b[step][n][1] = pair.r[1];
          b[step][n + 1][0] = pair.r[2], b[step][n + 1][1] = pair.r[3];
        }
    }
  }

  // What a group has added up so far: products, and x alone.
  struct Group {
    float products[kWarpBlocks][kBlocks][4], rows[kBlocks][4];  // kRowsAsA: the even ones, rows of x as rows of A
    __device__ __forceinline__ void clear() {
#pragma unroll
      for (int n = 0; n < kBlocks; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          rows[n][e] = 0.0f;
#pragma unroll
          for (int block = 0; block < kWarpBlocks; ++block) products[block][n][e] = 0.0f;
        }
    }
  };

  static __device__ __forceinline__ uint32_t word(const uint4& w, int step) {
    return step == 0 ? w.x : step == 1 ? w.y : step == 2 ? w.z : w.w;
  }

  // k-steps [first, first + kSteps) of a tile, which share a scale.
  template <int kSteps>
  __device__ __forceinline__ void multiply(Group& group, const uint4 (&words)[kWarpBlocks],
                                           const uint32_t (&b)[4][kBlocks][2], int first) const {
    const uint32_t ones[4] = {Raw::kOnes, Raw::kOnes, Raw::kOnes, Raw::kOnes};
#pragma unroll
    for (int step = first; step < first + kSteps; ++step) {
      if constexpr (kRowsAsA) {
        if (step % 2 == 0)
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
          const uint32_t a[4] = {b[step][n][0], b[step][n][1], b[step + 1][n][0], b[step + 1][n][1]};
          multiply_add<T>(group.rows[n], a, Raw::kOnes, Raw::kOnes);
        }
      } else {
#pragma unroll
      for (int n = 0; n < kBlocks; ++n)
        multiply_add<T>(group.rows[n], ones, b[step][n][0], b[step][n][1]);
      }
#pragma unroll
      for (int block = 0; block < kWarpBlocks; ++block) {
        uint32_t a[4];
        Raw::run(a, word(words[block], step));
#pragma unroll
        for (int n = 0; n < kBlocks; ++n)
          multiply_add<T>(group.products[block][n], a, b[step][n][0], b[step][n][1]);
      }
    }
  }

  // One tile of a unit.
  template <int kHalf>
  __device__ __forceinline__ void multiply_tile(int stage, Group& group) {
    const unsigned char* from = shared + stage * Traits::kStageBytes;
    const unsigned char* own = from + warp * Traits::kWarpBytes;
    constexpr int kSteps = Traits::kScaleSteps < 4 ? Traits::kScaleSteps : 4;
    uint32_t b[4][kBlocks][2];
    read_rows(b, Rows(shared_address(from) + Traits::kRowsOffset + depth_warp * Rows::kBytes),
              kHalf);
    uint4 words[kWarpBlocks];
#pragma unroll
    for (int block = 0; block < kWarpBlocks; ++block)
      words[block] = *reinterpret_cast<const uint4*>(own + kHalf * Traits::kTilePart + block * 512 +
                                                     lane * 16);
#pragma unroll
    for (int first = 0; first < 4; first += kSteps) {
      const int begin = kHalf * 4 + first;
      if (begin % Traits::kScaleSteps == 0) group.clear();
      multiply<kSteps>(group, words, b, first);
      if ((begin + kSteps) % Traits::kScaleSteps == 0)
        scale(own, begin / Traits::kScaleSteps, group);
    }
  }

  // Of the lane's two channels of a block.
  __device__ __forceinline__ uint32_t zeros_of(const unsigned char* own, int row, int block) const {
    return *reinterpret_cast<const uint16_t*>(
        own + Traits::kZerosOffset + row * Traits::kWarpChannels + block * 16 + lane / 4 * 2);
  }
  __device__ __forceinline__ uint32_t scales_of(const unsigned char* own, int row,
                                                int block) const {
    return *reinterpret_cast<const uint32_t*>(
        own + Traits::kScalesOffset +
        (row * Traits::kWarpChannels + block * 16 + lane / 4 * 2) * 2);
  }

  // The end of a group.
  __device__ __forceinline__ void scale(const unsigned char* own, int row, const Group& group) {
    float row_sums[kBlocks][2];
#pragma unroll
    for (int n = 0; n < kBlocks; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if constexpr (kRowsAsA) row_sums[n][e] = __shfl_sync(0xffffffffu, group.rows[n][0] + group.rows[n][2], lane % 4 * 8 + e * 4);
        else row_sums[n][e] = group.rows[n][e];
      }
#pragma unroll
    for (int block = 0; block < kWarpBlocks; ++block) {
      const float2 shift = Raw::shifts(zeros_of(own, row, block));
      const float2 factor = Raw::to_floats(scales_of(own, row, block));
#pragma unroll
      for (int n = 0; n < kBlocks; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float shifted =
              fmaf(e < 2 ? -shift.x : -shift.y, row_sums[n][e % 2], group.products[block][n][e]);
          sums[block][n][e] = fmaf(shifted, e < 2 ? factor.x : factor.y, sums[block][n][e]);
        }
    }
  }

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) load(step);
  }

  __device__ __forceinline__ void run() {
    int unit = load_unit - (kStages - 1) * kDepthWarps;
    int stage = 0, free = kStages - 1;
    Group group;
    for (; unit < end_unit; unit += kDepthWarps) {
      copy_async_wait<2 * kStages - 3>();
      wait_for_sharing();
      load(free);
      multiply_tile<0>(stage, group);
      copy_async_wait<2 * kStages - 2>();
      multiply_tile<1>(stage, group);
      stage = stage + 1 == kStages ? 0 : stage + 1;
      free = free + 1 == kStages ? 0 : free + 1;
    }
    copy_async_wait_all();
    __syncwarp();
  }

  // Puts this warp's sums where its weights were.
  __device__ __forceinline__ void store(const typename Traits::Sums& to) const {
#pragma unroll
    for (int n = 0; n < kBlocks; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = n * 8 + lane % 4 * 2 + e;
        if (first_row + row >= p.rows) continue;
#pragma unroll
        for (int block = 0; block < kWarpBlocks; ++block)
          store_shared_float2(to.place(warp, row, block * 16 + lane / 4 * 2),
                              make_float2(sums[block][n][e] * Raw::kFirstFactor,
                                          sums[block][n][2 + e] * Raw::kSecondFactor));
      }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kCtas)
    int4_small_kernel(const __grid_constant__ Int4Params p) {
  extern __shared__ __align__(128) unsigned char shared_memory[];
  SmallKernel<Traits> kernel(p, shared_memory, blockIdx.x, blockIdx.y, blockIdx.z);
  if constexpr (Traits::kV & 2) kernel.begin_early(); else kernel.begin();
  const typename Traits::Sums sums(p, kernel.base, kernel.base + Traits::kSumsOffset, blockIdx.x,
                                   kernel.first_row);
  sums.begin();
  if constexpr (Traits::kV & 2) kernel.run_early(); else kernel.run();
  kernel.store(sums);
  __syncthreads();
  sums.template finish<typename Traits::T, Traits::kThreads>(kernel.first_row,
                                                             blockIdx.y * Traits::kChannels);
}

}  // namespace jax_baracuda
