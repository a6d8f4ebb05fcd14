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

// Rows of x of a unit: 128 columns in pieces of 8, the place of which in its row changes with the row, so that a piece of eight
// rows falls in different banks. A unit starts at a multiple of 128 bytes: from one place to another of the same lane it is an
// exclusive or.
template <int kRows>
struct SmallRows {
  static constexpr int kCols = 2 * kDepth, kPieces = kCols / 8, kPitch = kCols * 2;
  static constexpr int kBytes = kRows * kPitch;
  static __device__ __forceinline__ uint32_t place(int row, int piece) {
    return row * kPitch + (piece ^ row % 8) * 16;
  }
};

// kBlocks: of 8 rows of x. kWarpBlocks: of 16 channels that a warp has, 4 or 2. kScaleSteps: k-steps of 16 that share a
// scale, 2, 4 or 8 (groups of 32, 64, more).
template <class T_, int kBlocks_, int kChannelWarps_, int kDepthWarps_, int kStages_, int kCtas_,
          int kWarpBlocks_, int kScaleSteps_>
struct SmallTraits {
  using T = T_;
  static constexpr int kWarpBlocks = kWarpBlocks_, kWarpChannels = 16 * kWarpBlocks;
  static constexpr int kBlocks = kBlocks_, kChannelWarps = kChannelWarps_,
                       kDepthWarps = kDepthWarps_;
  static constexpr int kStages = kStages_, kCtas = kCtas_, kScaleSteps = kScaleSteps_;
  static constexpr int kRows = 8 * kBlocks, kChannels = kWarpChannels * kChannelWarps;
  static constexpr int kWarps = kChannelWarps * kDepthWarps, kThreads = 32 * kWarps;
  static constexpr int kUnit = 2;  // tiles of weights that a warp has in a stage
  static constexpr int kScaleRows = 8 / kScaleSteps;
  // With few warps an SM, the next stage is asked for before this one is read, else after.
  static constexpr bool kLoadFirst = kBlocks == 2 && kCtas == 1 && kWarps == 8;

  // A stage of a warp: weights, scales, zero points; of the CTA: those and x.
  static constexpr int kTilePart = kWarpBlocks * 512;  // bytes of a tile that a warp has
  static constexpr int kScalesOffset = kUnit * kTilePart;
  // Of 16 bytes: two of scales a row and block, then one of zero points.
  static constexpr int kScalePieces = 3 * kWarpBlocks * kScaleRows;
  static constexpr int kZerosOffset = kScalesOffset + kScaleRows * kWarpChannels * 2;
  static constexpr int kWarpBytes = (kScalesOffset + kScalePieces * 16 + 127) / 128 * 128;
  using Rows = SmallRows<kRows>;
  static constexpr int kRowsOffset = kWarps * kWarpBytes;
  static constexpr int kStageBytes = kRowsOffset + kDepthWarps * Rows::kBytes;

  using Sums = SmallSums<kRows, kWarpBlocks, kChannelWarps, kDepthWarps, kWarpBytes, kStageBytes>;
  static constexpr int kSumsOffset = kStages * kStageBytes;
  static constexpr int kSharedBytes = kSumsOffset + Sums::kBytes;
};

// What is worked out here, and not again for every use of it.
__device__ __forceinline__ void keep_register(uint32_t& v) { asm volatile("" : "+r"(v)); }

template <class Traits>
struct SmallKernel {
  using T = typename Traits::T;
  using Rows = typename Traits::Rows;
  using Raw = RawNibbles<T>;
  static constexpr int kBlocks = Traits::kBlocks, kStages = Traits::kStages,
                       kDepthWarps = Traits::kDepthWarps, kWarpBlocks = Traits::kWarpBlocks;

  const Int4Params& p;
  unsigned char* const shared;
  uint32_t base = shared_address(shared);
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const int channel_warp = warp % Traits::kChannelWarps, depth_warp = warp / Traits::kChannelWarps;
  const int first_row, end_unit;

  // Of the stage that is loaded next: this warp's unit, its weights, this thread's part of x.
  int load_unit;
  const uint8_t* load_weights;
  const T* load_x;
  int rows_left;     // of x, from this thread's first row on
  int columns_left;  // from this thread's first column of the stage on
  uint32_t x_place,
      x_operands;  // in a stage: this thread's first piece of x, and its first place of B operands
  const int first_channel;

  // A piece of scales or zero points that this thread copies: of group 0; from group to group (0: there is no such piece).
  struct ScaleSource {
    const uint8_t* from;
    uint32_t stride;
    int row;  // of a stage's kScaleRows
  };
  ScaleSource load_scale;  // of a stage with one row of scales; for more there are no registers

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
    keep_register(base);
    load_weights =
        p.packed +
        (static_cast<int64_t>(first_channel / kStrip) * p.depth_tiles + load_unit * Traits::kUnit) *
            kTileBytes +
        first_channel % kStrip * 32 + lane * 16;
  }

  // What the first weights do not wait for.
  __device__ __forceinline__ void place_rows() {
    rows_left = p.rows - first_row - thread_row();
    columns_left = p.columns - thread_piece() * 8 - load_unit * Rows::kCols;
    const uint32_t unit = Traits::kRowsOffset + depth_warp * Rows::kBytes;
    x_place = unit + Rows::place(thread_row(), thread_piece());
    x_operands = unit + Rows::place(lane % 8, lane / 8);
    load_x = static_cast<const T*>(p.x) +
             static_cast<int64_t>(first_row + thread_row()) * p.columns + load_unit * Rows::kCols +
             thread_piece() * 8;
    load_scale = scale_source(lane);
    keep_register(x_place);
    keep_register(x_operands);
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

  // Of x: the first row that this thread copies, and its piece of it and those kRowStep apart.
  static constexpr int kRowStep = kSharing / Rows::kPieces;
  static_assert(Traits::kRows % kRowStep == 0);
  __device__ __forceinline__ int thread_row() const {
    return (channel_warp * 32 + lane) / Rows::kPieces;
  }
  __device__ __forceinline__ int thread_piece() const {
    return (channel_warp * 32 + lane) % Rows::kPieces;
  }

  // Rows of x that are not there are never copied: they make no sum that counts.
  __device__ __forceinline__ void load_rows(uint32_t stage) const {
    const uint32_t first = stage + x_place;
    const bool valid = columns_left > 0;
    const T* from = load_x;
#pragma unroll
    for (int at = 0; at < Traits::kRows; at += kRowStep) {
      if (at < rows_left) copy_async_16((first ^ at % 8 * 16) + at * Rows::kPitch, from, valid);
      from += static_cast<uint32_t>(kRowStep * p.columns);
    }
  }

  __device__ __forceinline__ ScaleSource scale_source(int piece) const {
    constexpr int kScales = 2 * kWarpBlocks;  // pieces of a row
    if (piece >= Traits::kScalePieces) return {nullptr, 0, 0};
    const int width = p.strips * kStrip;
    if (piece < kScales * Traits::kScaleRows)
      return {static_cast<const uint8_t*>(p.scales) + (first_channel + piece % kScales * 8) * 2,
              2u * width, piece / kScales};
    return {p.zeros + first_channel + piece % kWarpBlocks * 16, static_cast<uint32_t>(width),
            piece / kWarpBlocks - 2 * Traits::kScaleRows};
  }

  __device__ __forceinline__ void load_scales(uint32_t to) const {
    constexpr int kScaleRows = Traits::kScaleRows;
#pragma unroll
    for (int slot = 0; slot < (Traits::kScalePieces + 31) / 32; ++slot) {
      const ScaleSource source = kScaleRows == 1 ? load_scale : scale_source(slot * 32 + lane);
      if (source.stride == 0) continue;
      const int row = kScaleRows == 1 ? 0 : source.row;
      const int tile = load_unit * Traits::kUnit + (kScaleRows == 4 ? row / 2 : row);
      const uint32_t group = kScaleRows == 4 ? load_unit * 4 + row : divide(tile, p.group_tiles);
      copy_async_16(to + (slot * 32 + lane) * 16,
                    source.from + static_cast<uint64_t>(group) * source.stride,
                    kScaleRows == 1 || tile < p.depth_tiles);
    }
  }

  // Starts to copy the next stage, in two groups: what the first tile of each unit needs, and the other tiles.
  __device__ __forceinline__ void load(int stage_index) {
    const uint32_t stage = base + stage_index * Traits::kStageBytes;
    if (load_unit < end_unit) {
      load_first_tile(stage);
      load_rest(stage);
    } else {
      copy_async_commit();
    }
    copy_async_commit();
    next_unit();
  }
  __device__ __forceinline__ void load_first_tile(uint32_t stage) const {
#pragma unroll
    for (int block = 0; block < kWarpBlocks; ++block)
      copy_async_16(stage + warp * Traits::kWarpBytes + lane * 16 + block * 512,
                    load_weights + block * 512, true);
  }
  __device__ __forceinline__ void load_rest(uint32_t stage) const {
    const uint32_t own = stage + warp * Traits::kWarpBytes;
    load_scales(own + Traits::kScalesOffset);
    load_rows(stage);
    copy_async_commit();
    const bool valid = load_unit * Traits::kUnit + 1 < p.depth_tiles;
#pragma unroll
    for (int block = 0; block < kWarpBlocks; ++block)
      copy_async_16(own + lane * 16 + Traits::kTilePart + block * 512,
                    load_weights + kTileBytes + block * 512, valid);
  }
  __device__ __forceinline__ void next_unit() {
    load_unit += kDepthWarps;
    load_weights += kDepthWarps * Traits::kUnit * kTileBytes;
    load_x += kDepthWarps * Rows::kCols;
    columns_left -= kDepthWarps * Rows::kCols;
  }

  // A tile's words, and its rows of x as B operands.
  struct Operands {
    uint32_t b[4][kBlocks][2];
    uint4 words[kWarpBlocks];
  };
  template <int kHalf>
  __device__ __forceinline__ void read_tile(Operands& of, int stage) const {
    const unsigned char* from = shared + stage * Traits::kStageBytes;
    const uint32_t rows = shared_address(from) + x_operands;
#pragma unroll
    for (int step = 0; step < 4; step += 2)
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
        uint32_t r[4];
        load_matrices(r, (rows ^ step * 32) + n * 8 * Rows::kPitch + kHalf * 128);
        of.b[step][n][0] = r[0], of.b[step][n][1] = r[1];
        of.b[step + 1][n][0] = r[2], of.b[step + 1][n][1] = r[3];
      }
#pragma unroll
    for (int block = 0; block < kWarpBlocks; ++block)
      of.words[block] = *reinterpret_cast<const uint4*>(
          from + warp * Traits::kWarpBytes + kHalf * Traits::kTilePart + block * 512 + lane * 16);
  }

  // What a group has added up so far: products, and x alone, of row g in elements 0 and 2.
  struct Group {
    float products[kWarpBlocks][kBlocks][4], rows[kBlocks][4];
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

  // Adds up two k-steps of x by one product: both B operands of 8 rows side by side are an A operand, whose rows g and g + 8
  // are parts of row g. Rows of x do not mix, so that a NaN stays where it is.
  static __device__ __forceinline__ void add_rows(float (&rows)[4], const uint32_t (&first)[2],
                                                  const uint32_t (&second)[2]) {
    const uint32_t a[4] = {first[0], first[1], second[0], second[1]};
    multiply_add<T>(rows, a, Raw::kOnes, Raw::kOnes);
  }

  // k-steps [first, first + kSteps) of a tile, which share a scale.
  template <int kSteps>
  __device__ __forceinline__ void multiply(Group& group, const Operands& of, int first) const {
#pragma unroll
    for (int step = first; step < first + kSteps; ++step) {
      if (step % 2 == 0)
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) add_rows(group.rows[n], of.b[step][n], of.b[step + 1][n]);
#pragma unroll
      for (int block = 0; block < kWarpBlocks; ++block) {
        uint32_t a[4];
        Raw::run(a, word(of.words[block], step));
#pragma unroll
        for (int n = 0; n < kBlocks; ++n)
          multiply_add<T>(group.products[block][n], a, of.b[step][n][0], of.b[step][n][1]);
      }
    }
  }

  // One tile of a unit.
  template <int kHalf>
  __device__ __forceinline__ void multiply_tile(int stage, Group& group, const Operands& of) {
    const unsigned char* own = shared + stage * Traits::kStageBytes + warp * Traits::kWarpBytes;
    constexpr int kSteps = Traits::kScaleSteps < 4 ? Traits::kScaleSteps : 4;
#pragma unroll
    for (int first = 0; first < 4; first += kSteps) {
      const int begin = kHalf * 4 + first;
      if (begin % Traits::kScaleSteps == 0) group.clear();
      multiply<kSteps>(group, of, first);
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
    float rows[kBlocks][2];  // the sums of rows 2 t and 2 t + 1 of x, from the lanes that have them
#pragma unroll
    for (int n = 0; n < kBlocks; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        rows[n][e] =
            __shfl_sync(0xffffffffu, group.rows[n][0] + group.rows[n][2], lane % 4 * 8 + e * 4);
#pragma unroll
    for (int block = 0; block < kWarpBlocks; ++block) {
      const float2 shift = Raw::shifts(zeros_of(own, row, block));
      const float2 factor = Raw::to_floats(scales_of(own, row, block));
#pragma unroll
      for (int n = 0; n < kBlocks; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float* products = group.products[block][n];
          const float first = Raw::first(products[e], products[2 + e]);
          float* sum = sums[block][n];
          sum[e] = fmaf(fmaf(-shift.x, rows[n][e], first), factor.x, sum[e]);
          sum[2 + e] = fmaf(fmaf(-shift.y, rows[n][e], products[2 + e]), factor.y, sum[2 + e]);
        }
    }
  }

  __device__ __forceinline__ void begin() {
    // Memory takes longest: weights are asked for before the places of x are worked out.
    const bool any = load_unit < end_unit;
    if (any) load_first_tile(base);
    place_rows();
    if (any)
      load_rest(base);
    else
      copy_async_commit();
    copy_async_commit();
    next_unit();
#pragma unroll
    for (int step = 1; step < kStages - 1; ++step) load(step);
  }

  __device__ __forceinline__ void run() {
    int unit = load_unit - (kStages - 1) * kDepthWarps;
    int stage = 0, free = kStages - 1;
    Group group;
    for (; unit < end_unit; unit += kDepthWarps) {
      copy_async_wait<2 * kStages - 3>();
      wait_for_sharing();
      if constexpr (Traits::kLoadFirst) load(free);
      Operands of;
      read_tile<0>(of, stage);
      if constexpr (!Traits::kLoadFirst) load(free);
      multiply_tile<0>(stage, group, of);
      copy_async_wait<2 * kStages - 2>();
      read_tile<1>(of, stage);
      multiply_tile<1>(stage, group, of);
      stage = stage + 1 == kStages ? 0 : stage + 1;
      free = free + 1 == kStages ? 0 : free + 1;
    }
    copy_async_wait_all();
    __syncwarp();
  }

  // Puts this warp's sums where its weights were; those of rows that are not there, too.
  __device__ __forceinline__ void store(const typename Traits::Sums& to) const {
    const int first = lane % 4 * 2, channel = lane / 4 * 2;
#pragma unroll
    for (int high = 0; high < kBlocks; high += 2) {
      const uint32_t even = to.place(warp, high * 8 + first, channel),
                     odd = to.place(warp, high * 8 + first, channel + 16);
#pragma unroll
      for (int n = high; n < min(high + 2, kBlocks); ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
#pragma unroll
          for (int block = 0; block < kWarpBlocks; ++block)
            store_shared_float2((block % 2 ? odd : even) + block / 2 * 128 +
                                    ((n - high) * 8 + e) * Traits::kWarpChannels * 4,
                                make_float2(sums[block][n][e], sums[block][n][2 + e]));
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kCtas)
    int4_small_kernel(const __grid_constant__ Int4Params p) {
  extern __shared__ __align__(128) unsigned char shared_memory[];
  SmallKernel<Traits> kernel(p, shared_memory, blockIdx.x, blockIdx.y, blockIdx.z);
  kernel.begin();
  const typename Traits::Sums sums(p, kernel.base, kernel.base + Traits::kSumsOffset, blockIdx.x,
                                   kernel.first_row);
  sums.begin();
  kernel.run();
  kernel.store(sums);
  __syncthreads();
  if constexpr (kRacecheck) __syncthreads();
  sums.template finish<typename Traits::T, typename SmallKernel<Traits>::Raw>(
      kernel.first_row, blockIdx.y * Traits::kChannels);
}

}  // namespace jax_baracuda
