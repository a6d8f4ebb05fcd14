// One warp's share of a chunk for f16 and bf16: tensor-core products straight from registers.
//
// Both products are taken transposed, with the keys as the 16 rows of the matrix instruction and the
// query heads as its 8 columns: S^T = K Q^T and O^T = V^T P^T. A product may visit its inner dimension in
// any order, so every lane loads 16 contiguous bytes and calls them whatever its fragment needs: K and V
// go from global memory to the tensor core without shared memory, without a barrier between warps.
//   K: lane (g, q) holds rows g and g + 8, 16-byte chunks q, q + 4, ... : two k-steps a chunk.
//   V: lane (g, q) holds rows 2q, 2q + 1, 2q + 8, 2q + 9, chunks g, g + 8, ... ; a byte permute pairs two
//      rows, and the columns of V come out in the order d = 8 g + i.
#pragma once

#include <cstdint>

#include "decode/config.h"
#include "decode/params.h"
#include "decode/score.cuh"
#include "decode/source.cuh"
#include "device/math.cuh"
#include "device/mma.cuh"

namespace jax_baracuda {

template <class Element_, int kDimTile_, int kHeadTile_, bool kVector_>
class MmaTile {
 public:
  using Element = Element_;
  static constexpr int kDimTile = kDimTile_;
  static constexpr int kHeadTile = kHeadTile_;
  static constexpr bool kVector = kVector_;
  static constexpr int kTokens = kDimTile == 64 ? 32 : 16;
  static constexpr int kChunkElements = 8;

  // Position, in 16-byte units, of a chunk of a query head in shared memory: a lane's operand for two
  // k-steps is one conflict-free 16-byte load.
  __device__ static int query_index(int head, int chunk) {
    return ((head / 8) * kChunkGroups + chunk / 4) * 32 + (head % 8) * 4 + chunk % 4;
  }

  __device__ MmaTile() { reset(); }

  __device__ void reset() {
#pragma unroll
    for (int n = 0; n < kHeadGroups; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        maximum_[n][e] = negative_infinity();
        sum_[n][e] = 0.0f;
      }
#pragma unroll
      for (int m = 0; m < kDimTile / 16; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) out_[n][m][i] = 0.0f;
    }
  }

  template <class Source>
  __device__ void load_keys(const DecodeParams& p, const Source& source, int token, int limit) {
    const Element* base = static_cast<const Element*>(p.key);
#pragma unroll
    for (int m = 0; m < kTokens / 16; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = token + m * 16 + half * 8 + lane() / 4;
#pragma unroll
        for (int j = 0; j < kChunkGroups; ++j)
          keys_[m][half][j] = load_chunk<kVector>(base + source.row(row), lane() % 4 + 4 * j,
                                                  p.head_dim, row < limit);
      }
    }
  }

  template <class Source>
  __device__ void load_values(const DecodeParams& p, const Source& source, int token, int limit) {
    const Element* base = static_cast<const Element*>(p.value);
#pragma unroll
    for (int m = 0; m < kTokens / 16; ++m) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = token + m * 16 + (r / 2) * 8 + (lane() % 4) * 2 + r % 2;
#pragma unroll
        for (int j = 0; j < kDimTile / 64; ++j)
          values_[m][r][j] = load_chunk<kVector>(base + source.row(row), lane() / 4 + 8 * j,
                                                 p.head_dim, row < limit);
      }
    }
  }

  // S^T = K Q^T; frees the key registers.
  __device__ void multiply_keys(const uint4* query) {
#pragma unroll
    for (int n = 0; n < kHeadGroups; ++n) {
#pragma unroll
      for (int m = 0; m < kTokens / 16; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores_[n][m][i] = 0.0f;
#pragma unroll
      for (int j = 0; j < kChunkGroups; ++j) {
        const uint4 b = query[(n * kChunkGroups + j) * 32 + lane()];
#pragma unroll
        for (int m = 0; m < kTokens / 16; ++m) {
          const uint4& low = keys_[m][0][j];
          const uint4& high = keys_[m][1][j];
          mma_16816<Element>(scores_[n][m], low.x, high.x, low.y, high.y, b.x, b.y);
          mma_16816<Element>(scores_[n][m], low.z, high.z, low.w, high.w, b.z, b.w);
        }
      }
    }
  }

  // Online softmax: scores become probabilities relative to the running maximum.
  __device__ void update_softmax(const Scorer& scorer, const float* slopes_log2, int token, int limit,
                                 int query_position) {
    const int first = token + lane() / 4;
#pragma unroll
    for (int n = 0; n < kHeadGroups; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float slope =
            slopes_log2 == nullptr ? 0.0f : slopes_log2[n * 8 + (lane() % 4) * 2 + e];
        float maximum = negative_infinity();
#pragma unroll
        for (int m = 0; m < kTokens / 16; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int key = first + m * 16 + half * 8;
            float& s = scores_[n][m][half * 2 + e];
            s = key < limit ? scorer(s, slope, query_position - key) : negative_infinity();
            maximum = fmaxf(maximum, s);
          }
        }
        maximum = fmaxf(butterfly_max<4, 16>(maximum), maximum_[n][e]);
        const float base = maximum == negative_infinity() ? 0.0f : maximum;
        const float correction = exp2_approx(maximum_[n][e] - base);
        maximum_[n][e] = maximum;
        float sum = 0.0f;
#pragma unroll
        for (int m = 0; m < kTokens / 16; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float& s = scores_[n][m][half * 2 + e];
            s = exp2_approx(s - base);
            sum += s;
          }
        }
        sum_[n][e] = sum_[n][e] * correction + sum;  // this lane's keys only; added up at the end
#pragma unroll
        for (int m = 0; m < kDimTile / 16; ++m) {
          out_[n][m][e] *= correction;
          out_[n][m][2 + e] *= correction;
        }
      }
    }
  }

  // O^T += V^T P^T; frees the value registers.
  __device__ void multiply_values() {
#pragma unroll
    for (int m = 0; m < kTokens / 16; ++m) {
      uint32_t b[kHeadGroups][2];
#pragma unroll
      for (int n = 0; n < kHeadGroups; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          b[n][half] = transpose_8x8(
              pack_floats<Element>(scores_[n][m][half * 2], scores_[n][m][half * 2 + 1]));
#pragma unroll
      for (int j = 0; j < kDimTile / 64; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t r0 = word(values_[m][0][j], i), r1 = word(values_[m][1][j], i);
          const uint32_t r2 = word(values_[m][2][j], i), r3 = word(values_[m][3][j], i);
          const uint32_t a0 = pack_low(r0, r1), a1 = pack_high(r0, r1);
          const uint32_t a2 = pack_low(r2, r3), a3 = pack_high(r2, r3);
#pragma unroll
          for (int n = 0; n < kHeadGroups; ++n)
            mma_16816<Element>(out_[n][j * 4 + i], a0, a1, a2, a3, b[n][0], b[n][1]);
        }
      }
    }
  }

  // This warp's result: out[head][kDimTile + kMergePad] relative to stats[head] = (maximum, sum).
  __device__ void store(float* out, float2* stats) {
#pragma unroll
    for (int n = 0; n < kHeadGroups; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int head = n * 8 + (lane() % 4) * 2 + e;
        const float sum = butterfly_sum<4, 16>(sum_[n][e]);
        if (lane() < 4) stats[head] = make_float2(maximum_[n][e], sum);
        float* row = out + head * (kDimTile + kMergePad) + (lane() / 4) * 8;
#pragma unroll
        for (int j = 0; j < kDimTile / 64; ++j) {
#pragma unroll
          for (int i = 0; i < 4; i += 2) {
            const auto& first = out_[n][j * 4 + i];
            const auto& second = out_[n][j * 4 + i + 1];
            *reinterpret_cast<float4*>(row + j * 64 + i * 2) =
                make_float4(first[e], first[2 + e], second[e], second[2 + e]);
          }
        }
      }
    }
  }

 private:
  static constexpr int kChunkGroups = kDimTile / 32;  // 16-byte chunks of a row, by fours
  static constexpr int kHeadGroups = kHeadTile / 8;

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static uint32_t word(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
  }

  uint4 keys_[kTokens / 16][2][kChunkGroups];
  uint4 values_[kTokens / 16][4][kDimTile / 64];
  float scores_[kHeadGroups][kTokens / 16][4];
  float out_[kHeadGroups][kDimTile / 16][4];
  float maximum_[kHeadGroups][2];
  float sum_[kHeadGroups][2];
};

}  // namespace jax_baracuda
