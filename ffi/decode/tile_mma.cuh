// One warp's share of a chunk for f16 and bf16: tensor-core products straight from registers.
//
//   S = Q K^T        query heads are the rows, K is the B operand
//   O^T = V^T P^T    16 columns of V x 8 query heads a product, V is the A operand
// S leaves the first product laid out as P^T enters the second one. A product may visit its inner
// dimension in any order and its outer ones too, so every lane loads 16 contiguous bytes and calls them
// whatever its fragment needs: K and V go from global memory to the tensor core without shared memory and
// without a barrier between warps. A byte permute pairs two rows of V; its columns come out in the order
// 8 g + i. With lane = 4 g + q and chunks of 16 bytes:
//   16 heads: a product has 16 heads and 8 keys. The lane holds key g, chunks q, q + 4, ...
//   8 heads: a product has 4 keys. Its rows are the heads with the first half of every 128 bytes and the
//     same heads with the second half; its columns are the keys, each with either half. The lane holds
//     key g / 2, chunks 4 (g % 2) + q, 8 further, ... , so that loads are whole lines, no row is padding,
//     and the two halves of a score meet in one lane.
#pragma once

#include <cstdint>

#include "decode/config.h"
#include "decode/params.h"
#include "decode/score.cuh"
#include "decode/source.cuh"
#include "device/math.cuh"
#include "device/memory.cuh"
#include "device/mma.cuh"

namespace jax_baracuda {

// kGrouped: where the lane holds 8 heads' scores of keys q, q + 4, ... it has those of keys 4 q, 4 q + 1, ... instead, and
// lanes that read V from shared memory at the same time have rows that are four apart (ring.cuh).
template <class Element_, int kDimTile_, int kHeadTile_, bool kVector_, bool kGrouped = false>
class MmaTile {
 public:
  using Element = Element_;
  static constexpr int kDimTile = kDimTile_;
  static constexpr int kHeadTile = kHeadTile_;
  static constexpr bool kVector = kVector_;
  static constexpr int kTokens = kDimTile == 64 ? 32 : 16;

  // Where 16 bytes of a query head go in shared memory, in 4-byte units, and each of their words from there:
  // a lane's operand for a k-step is one 16-byte load.
  __device__ static int query_index(int head, int chunk) {
    const int step = chunk / kChunkStep * 2;
    const int lane = head % 8 * 4 + chunk % 4;
    const int upper_rows = kHalves ? chunk % 8 / 4 : head / 8;
    return (step * 32 + lane) * 4 + upper_rows;
  }
  __device__ static constexpr int query_word(int word) { return word / 2 * 128 + word % 2 * 2; }

  __device__ MmaTile() { reset(); }

  __device__ void reset() {
#pragma unroll
    for (int h = 0; h < kHeadGroups; ++h) {
      maximum_[h] = negative_infinity();
      sum_[h] = 0.0f;
#pragma unroll
      for (int m = 0; m < kDimTile / 16; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) out_[h][m][i] = 0.0f;
    }
  }

  // Rows are found before load_rows() branches: a look-up in either branch would make the compiler load to other
  // registers and move the data, and so wait for it.
  template <class Source>
  __device__ __forceinline__ void load_keys(const DecodeParams& p, const Source& source, int token,
                                            int limit) {
    decltype(source.find(0)) rows[kProducts];
#pragma unroll
    for (int t = 0; t < kProducts; ++t) rows[t] = source.find(stored_key(t));
    load_rows(p, token, limit, [&](auto load) {
      const int chunk = lane() % 4 + (kHalves ? lane() / 4 % 2 * 4 : 0);
#pragma unroll
      for (int t = 0; t < kProducts; ++t) {
        const Element* from = static_cast<const Element*>(p.key) + source.offset(p, rows[t]);
#pragma unroll
        for (int j = 0; j < kChunks; ++j)
          keys_[t][j] = load(from, token + stored_key(t), chunk + kChunkStep * j);
      }
    });
  }

  template <class Source>
  __device__ __forceinline__ void load_values(const DecodeParams& p, const Source& source,
                                              int token, int limit) {
    decltype(source.find(0)) rows[kTokens / 16][4];
#pragma unroll
    for (int m = 0; m < kTokens / 16; ++m)
#pragma unroll
      for (int r = 0; r < 4; ++r) rows[m][r] = source.find(key_of(m * 4 + r));
    load_rows(p, token, limit, [&](auto load) {
#pragma unroll
      for (int m = 0; m < kTokens / 16; ++m) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const Element* from = static_cast<const Element*>(p.value) + source.offset(p, rows[m][r]);
#pragma unroll
          for (int j = 0; j < kDimTile / 64; ++j)
            values_[m][r][j] = load(from, token + key_of(m * 4 + r), lane() / 4 + 8 * j);
        }
      }
    });
  }

  // The same from a stage of a ring in shared memory, which has all of the warp's keys.
  __device__ __forceinline__ void read_keys(uint32_t keys) {
    static_assert(kGrouped && kHalves);
    const uint32_t first = keys + lane() % 8 * 16;
#pragma unroll
    for (int t = 0; t < kProducts; ++t)
#pragma unroll
      for (int j = 0; j < kChunks; ++j)
        keys_[t][j] = load_shared_16(first + stored_key(t) * kRowBytes + 128 * j);
  }

  // Four rows at a time lie together. Rows past the `valid` ones are taken as zeros: nobody has written them.
  __device__ __forceinline__ void read_values(uint32_t values, int four_rows, int valid) {
    const uint32_t first = values + lane() % 4 * four_rows + lane() / 4 * 16;
#pragma unroll
    for (int m = 0; m < kTokens / 16; ++m)
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int j = 0; j < kDimTile / 64; ++j)
          values_[m][r][j] = load_shared_16(first + m * 4 * four_rows + r * kRowBytes + 128 * j);
    if (valid >= kTokens) return;
#pragma unroll
    for (int m = 0; m < kTokens / 16; ++m)
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int j = 0; j < kDimTile / 64; ++j)
          if (key_of(m * 4 + r) >= valid) values_[m][r][j] = make_uint4(0, 0, 0, 0);
  }

  // S = Q K^T; frees the key registers.
  __device__ __forceinline__ void multiply_keys(const uint4* query) {
    float products[kProducts][4];
#pragma unroll
    for (int t = 0; t < kProducts; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) products[t][i] = 0.0f;
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const uint4 a = query[2 * j * 32 + lane()];
      const uint4 b = query[(2 * j + 1) * 32 + lane()];
#pragma unroll
      for (int t = 0; t < kProducts; ++t) {
        const uint4& key = keys_[t][j];
        mma_16816<Element>(products[t], a.x, a.y, a.z, a.w, key.x, key.y);
        mma_16816<Element>(products[t], b.x, b.y, b.z, b.w, key.z, key.w);
      }
    }
#pragma unroll
    for (int t = 0; t < kProducts; ++t) {
      if constexpr (kHalves) {
        scores_[0][t] = products[t][0] + products[t][3];
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores_[i / 2][t * 2 + i % 2] = products[t][i];
      }
    }
  }

  // Online softmax: scores become probabilities relative to the running maximum. Lane 4 g + q holds query
  // heads g (and g + 8), keys key_of(0), key_of(1), ...
  __device__ __forceinline__ void update_softmax(const DecodeParams& p, const float* slopes_log2,
                                                 int token, int limit, int query_position) {
    float corrections[kHeadGroups];
    bool moved = false;
#pragma unroll
    for (int h = 0; h < kHeadGroups; ++h) {
      auto& scores = scores_[h];
      scale_products(p, scores);
      if (slopes_log2 != nullptr) {
        const float slope = slopes_log2[h * 8 + lane() / 4];
#pragma unroll
        for (int i = 0; i < kTokens / 4; ++i)
          scores[i] -= slope * static_cast<float>(query_position - (token + key_of(i)));
      }
      if (token + kTokens > limit) {
#pragma unroll
        for (int i = 0; i < kTokens / 4; ++i)
          if (token + key_of(i) >= limit) scores[i] = negative_infinity();
      }
      float maximum = negative_infinity();
#pragma unroll
      for (int i = 0; i < kTokens / 4; ++i) maximum = fmaxf(maximum, scores[i]);
      maximum = fmaxf(butterfly_max<1, 2>(maximum), maximum_[h]);
      const float base = maximum == negative_infinity() ? 0.0f : maximum;
      corrections[h] = exp2_approx(maximum_[h] - base);
      moved |= maximum != maximum_[h];
      maximum_[h] = maximum;
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kTokens / 4; ++i) {
        scores[i] = exp2_approx(scores[i] - base);
        sum += scores[i];
      }
      sum_[h] = sum_[h] * corrections[h] + sum;  // this lane's keys only; added up at the end
    }
    if (__any_sync(0xffffffffu, moved)) rescale(corrections);
  }

  // O^T += V^T P^T; frees the value registers.
  __device__ __forceinline__ void multiply_values() {
#pragma unroll
    for (int m = 0; m < kTokens / 16; ++m) {
      uint32_t b[kHeadGroups][2];
#pragma unroll
      for (int h = 0; h < kHeadGroups; ++h)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          b[h][half] =
              pack_floats<Element>(scores_[h][m * 4 + half * 2], scores_[h][m * 4 + half * 2 + 1]);
#pragma unroll
      for (int j = 0; j < kDimTile / 64; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t r0 = word(values_[m][0][j], i), r1 = word(values_[m][1][j], i);
          const uint32_t r2 = word(values_[m][2][j], i), r3 = word(values_[m][3][j], i);
          const uint32_t a0 = pack_low(r0, r1), a1 = pack_high(r0, r1);
          const uint32_t a2 = pack_low(r2, r3), a3 = pack_high(r2, r3);
#pragma unroll
          for (int h = 0; h < kHeadGroups; ++h)
            mma_16816<Element>(out_[h][j * 4 + i], a0, a1, a2, a3, b[h][0], b[h][1]);
        }
      }
    }
  }

  // This warp's result for the first `heads` of its query heads: out[head][kDimTile + kMergePad] relative to
  // stats[head] = (maximum, sum).
  __device__ __forceinline__ void store(float* out, float* stats, int heads) {
#pragma unroll
    for (int h = 0; h < kHeadGroups; ++h) {
      const float sum = butterfly_sum<1, 2>(sum_[h]);
      const int own = h * 8 + lane() / 4;
      if (lane() % 4 == 0 && own < heads)
        reinterpret_cast<float2*>(stats)[own] = make_float2(maximum_[h], sum);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int head = h * 8 + lane() % 4 * 2 + e;
        if (head >= heads) continue;
        float* row = out + head * (kDimTile + kMergePad) + lane() / 4 * 8;
#pragma unroll
        for (int j = 0; j < kDimTile / 64; ++j) {
#pragma unroll
          for (int i = 0; i < 4; i += 2) {
            const auto& first = out_[h][j * 4 + i];
            const auto& second = out_[h][j * 4 + i + 1];
            *reinterpret_cast<float4*>(row + j * 64 + i * 2) =
                make_float4(first[e], first[2 + e], second[e], second[2 + e]);
          }
        }
      }
    }
  }

 private:
  static constexpr int kRowBytes = kDimTile * 2;
  static constexpr int kHeadGroups = kHeadTile / 8;
  static constexpr bool kHalves = kHeadTile == 8;
  static constexpr int kProductKeys = kHalves ? 4 : 8;
  static constexpr int kProducts = kTokens / kProductKeys;
  static constexpr int kChunkStep = kHalves ? 8 : 4;  // chunks from one of a lane's to the next
  static constexpr int kChunks = kDimTile / 8 / kChunkStep;

  __device__ static int lane() { return threadIdx.x % 32; }
  // The key of which this lane holds parts for product t.
  __device__ static int stored_key(int t) {
    if (kGrouped) return t / 4 * 16 + lane() / 8 * 4 + t % 4;
    return t * kProductKeys + (kHalves ? lane() / 8 : lane() / 4);
  }
  // The i-th of the keys whose scores, and whose values, this lane holds.
  __device__ static int key_of(int i) {
    if (kGrouped) return i / 4 * 16 + lane() % 4 * 4 + i % 4;
    return kHalves ? i * 4 + lane() % 4 : i / 2 * 8 + lane() % 4 * 2 + i % 2;
  }
  __device__ static uint32_t word(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
  }

  // Runs `body` with the plainest load that is right for this tile: almost all tiles need no predicates.
  template <class Body>
  __device__ __forceinline__ void load_rows(const DecodeParams& p, int token, int limit,
                                            Body body) {
    if (kVector && token + kTokens <= limit && p.head_dim == kDimTile) {
      body([](const Element* row, int, int chunk) { return load_global_16(row + chunk * 8); });
    } else {
      body([&](const Element* row, int token_of_row, int chunk) {
        return load_chunk<kVector>(row, chunk, p.head_dim, token_of_row < limit);
      });
    }
  }

  // The output's columns are query heads 2q and 2q + 1; their corrections are with lanes 8q and 8q + 4.
  __device__ __forceinline__ void rescale(const float (&corrections)[kHeadGroups]) {
#pragma unroll
    for (int h = 0; h < kHeadGroups; ++h) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float factor = __shfl_sync(0xffffffffu, corrections[h], (lane() % 4 * 2 + e) * 4);
#pragma unroll
        for (int m = 0; m < kDimTile / 16; ++m) {
          out_[h][m][e] *= factor;
          out_[h][m][2 + e] *= factor;
        }
      }
    }
  }

  uint4 keys_[kProducts][kChunks];
  uint4 values_[kTokens / 16][4][kDimTile / 64];
  float scores_[kHeadGroups][kTokens / 4];
  float out_[kHeadGroups][kDimTile / 16][4];
  float maximum_[kHeadGroups];
  float sum_[kHeadGroups];
};

}  // namespace jax_baracuda
