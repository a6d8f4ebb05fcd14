// The warp that brings a bias which all rows share, whatever its elements, block by block to shared memory. There a number,
// over the scale, is the sum of three of bfloat16, exact but for the last bits of float32.
#pragma once

#include "attention/hopper/traits.cuh"
#include "device/tma.cuh"

namespace jax_baracuda {

// x over the scale as bits of the three numbers. What is not finite is the first alone.
__device__ __forceinline__ void split_in_three(float x, uint16_t (&parts)[3]) {
#pragma unroll
  for (uint16_t& part : parts) {
    const __nv_bfloat16 rounded = __float2bfloat16(x);
    const float taken = __bfloat162float(rounded);
    part = __bfloat16_as_ushort(rounded);
    x = fabsf(taken) < INFINITY ? x - taken : 0.0f;
  }
}

template <class Traits>
struct RowBiasLoader {
  using Row = typename Traits::BiasRow;
  using Ones = typename Traits::Ones;
  static constexpr int kLoads = (Traits::kN + 31) / 32;  // of a lane

  const AttentionProblem& p;
  typename Traits::Control& control;
  uint32_t rows;
  int lane;

  RingPlace<Traits::kStages> place;
  int tile_slot = 0;

  __device__ __forceinline__ RowBiasLoader(const HopperForwardParams& params,
                                           typename Traits::Control& control, uint32_t shared,
                                           int lane)
      : p(params.problem), control(control), rows(shared + Traits::kBiasOffset), lane(lane) {}

  // A block's bias is there when its keys are, and gone when they are given back: there are no other barriers for it.
  __device__ __forceinline__ void run() {
    clear_and_set_ones();
    while (true) {
      mbarrier_wait(shared_address(&control.record_full[place.stage]), place.parity);
      const KeyBlock block = control.block[place.stage];
      if (__any_sync(0xffffffffu, block.flags & kNoBlock)) break;
      const auto& tile = control.tile[tile_slot];
      load(block.first_key, tile.sequence.index, tile.head);
      fence_async_shared();
      release();
      if (block.flags & kLastBlock) tile_slot = (tile_slot + 1) % Traits::Control::kTiles;
    }
    release();
  }
  __device__ __forceinline__ void release() {
    __syncwarp();
    mbarrier_arrive_warp(shared_address(&control.key_full[place.stage]));
    place.next();
  }

  __device__ __forceinline__ void load(int first_key, int sequence, int head) const {
    const AttentionBias& bias = p.bias;
    const int64_t row = sequence * bias.sequence_stride + head * bias.head_stride;
    switch (bias.type) {
      case BiasType::kF16:
        return load_as(first_key, static_cast<const __half*>(bias.data) + row,
                       [](__half x) { return __half2float(x); });
      case BiasType::kBF16:
        return load_as(first_key, static_cast<const __nv_bfloat16*>(bias.data) + row,
                       [](__nv_bfloat16 x) { return __bfloat162float(x); });
      case BiasType::kF32:
        return load_as(first_key, static_cast<const float*>(bias.data) + row,
                       [](float x) { return x; });
      default:
        return load_as(first_key, static_cast<const uint8_t*>(bias.data) + row,
                       [](uint8_t x) { return x ? 0.0f : negative_infinity(); });
    }
  }
  template <class Element, class Convert>
  __device__ __forceinline__ void load_as(int first_key, const Element* row,
                                          Convert convert) const {
    const float factor = __fdividef(1.0f, p.scale);
    Element x[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int key = first_key + 32 * i + lane;
      x[i] = key < p.bias.keys ? row[key] : Element();
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
      if (32 * i + lane < Traits::kN) store(32 * i + lane, convert(x[i]) * factor);
  }
  // The first eight columns of a row of either tile.
  template <class TileT>
  static __device__ __forceinline__ uint32_t place_of(uint32_t tile, int row) {
    return tile + TileT::row_offset(row) + (row / 2 % 4) * 16;
  }
  __device__ __forceinline__ void store(int key, float x) const {
    uint16_t parts[3];
    split_in_three(x, parts);
    store_shared_16(place_of<Row>(rows + place.stage * Row::kBytes, key),
                    make_uint4(parts[0] | parts[1] << 16, parts[2], 0, 0));
  }
  // What is not written again must be zeros: 0 times anything else may be no number.
  __device__ __forceinline__ void clear_and_set_ones() const {
    constexpr int kBytes = Traits::kStages * Row::kBytes + Ones::kBytes;
    for (int at = lane * 16; at < kBytes; at += 32 * 16)
      store_shared_16(rows + at, make_uint4(0, 0, 0, 0));
    __syncwarp();
    const uint32_t ones = rows + Traits::kStages * Row::kBytes;
    for (int row = lane; row < Ones::kRows; row += 32)
      store_shared_16(place_of<Ones>(ones, row), make_uint4(0x3f803f80, 0x3f80, 0, 0));
    __syncwarp();
  }
};

}  // namespace jax_baracuda
