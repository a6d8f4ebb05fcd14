// Tiles that CTAs share by their query rows, a part each: those of the last round, so that all CTAs end together. A warp leaves
// its sums of dK and dV in global memory; who comes last adds those of all parts, in their order, and writes dK and dV.
#pragma once

#include "attention/hopper/backward/params.h"
#include "attention/hopper/backward/results.cuh"

namespace jax_baracuda {

// What a warp of the consumers has to do with its part of a divided tile.
template <int kDim, int kDimV>
struct PartsOfWarp {
  static constexpr int kWarps = 8;
  static constexpr int kColumns = kDim % 64 == 0 ? 64 : 32;  // that are added at once
  static constexpr int kPieces = kColumns / 8;               // of 16 bytes, of a lane
  static constexpr int kValueGroups = kDimV / kColumns, kGroups = kValueGroups + kDim / kColumns;
  static_assert(kDim % kColumns == 0 && kDimV % kColumns == 0);
  static constexpr int kPart = kGroups * kPieces * 32;  // pieces: dV, then dK

  float4* first;  // the lane's first piece of part 0
  int* there;     // how many parts are
  int parts, part, lane;

  // `place`: among the parts of all divided tiles; the first parts come first.
  __device__ __forceinline__ PartsOfWarp(const HopperBackwardParams& p, int place, int warp,
                                         int lane)
      : parts(p.parts), part(place / p.divided), lane(lane) {
    const int index = (place - part * p.divided) * kWarps + warp;
    first = reinterpret_cast<float4*>(p.left) + int64_t{index} * parts * kPart + lane;
    there = p.left_all + index;
  }

  // Leaves the warp's part; whether those of all others are there.
  __device__ __forceinline__ bool leave(const float (&dk)[kDim / 2],
                                        const float (&dv)[kDimV / 2]) const {
    float4* to = first + part * kPart;
    leave(to, dv);
    leave(to + kValueGroups * kPieces * 32, dk);
    __threadfence();
    __syncwarp();
    const bool last = lane == 0 && atomicAdd(there, 1) == parts - 1;
    const bool all = __any_sync(0xffffffffu, last);
    __threadfence();
    return all;
  }

  // Writes the sums of all parts: from a row of dK and dV on, `rows` of them at most.
  template <class T>
  __device__ __forceinline__ void store(const BackwardParams& p, int64_t row, int rows,
                                        float scale_k, float scale_v) const {
#pragma unroll 1
    for (int group = 0; group < kGroups; ++group) {
      const bool is_value = group < kValueGroups;
      const int dim = is_value ? p.dim_v : p.dim;
      const int column = (is_value ? group : group - kValueGroups) * kColumns;
      float sum[kColumns / 2];
      add(sum, first + group * kPieces * 32);
      store_rows_of_warp<T, kColumns>(static_cast<T*>(is_value ? p.dv : p.dk) + row * dim + column,
                                      int64_t{p.kv_heads} * dim, rows, rows, dim - column, sum,
                                      is_value ? scale_v : scale_k, lane);
    }
  }

 private:
  template <int kCount>
  static __device__ __forceinline__ void leave(float4* to, const float (&d)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4)
      __stcg(to + i / 4 * 32, make_float4(d[i], d[i + 1], d[i + 2], d[i + 3]));
  }
  // The same columns of all parts.
  __device__ __forceinline__ void add(float (&sum)[kColumns / 2], const float4* from) const {
#pragma unroll
    for (float& x : sum) x = 0.0f;
#pragma unroll 1
    for (int i = 0; i < parts; ++i, from += kPart)
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        const float4 x = __ldcg(from + piece * 32);
        sum[4 * piece] += x.x;
        sum[4 * piece + 1] += x.y;
        sum[4 * piece + 2] += x.z;
        sum[4 * piece + 3] += x.w;
      }
  }
};

}  // namespace jax_baracuda
