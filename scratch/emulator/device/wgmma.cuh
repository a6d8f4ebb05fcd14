#pragma once
#include <cstdint>
#include "cuda_bf16.h"
#include "emul.h"
namespace jax_baracuda {
template <int kRows_, int kDim_>
struct PanelTile {
  static constexpr int kRows = kRows_, kDim = kDim_;
  static constexpr int kColumns = kDim % 64 == 0 ? 64 : 32;
  static constexpr int kPanels = kDim / kColumns;
  static constexpr int kPanelBytes = kRows * kColumns * 2;
  static constexpr int kBytes = kPanels * kPanelBytes;
  static_assert(kDim % kColumns == 0 && kPanelBytes % 1024 == 0);
  static uint64_t descriptor(uint32_t address) {
    return address | uint64_t(kPanelBytes) << 20 | uint64_t(kColumns) << 48;
  }
  static constexpr int column_offset(int k) {
    return k / kColumns * kPanelBytes + k % kColumns * 2;
  }
  static constexpr int row_offset(int row) { return row * kColumns * 2; }
};
inline uint64_t advance(uint64_t d, int bytes) { return d + bytes; }
inline void warpgroup_arrive() {}
inline void warpgroup_commit() {}
template <int>
void warpgroup_wait() {}
template <int n>
void hold(float (&)[n]) {}
inline float emul_at(uint32_t at) {
  __nv_bfloat16 b;
  memcpy(&b, emul_smem + at, 2);
  return __bfloat162float(b);
}
template <class T, int kN>
struct WarpgroupMma {
  static void shared(float (&d)[kN / 2], uint64_t a, uint64_t b, int accumulate) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const uint32_t A = a & 0xfffff, B = b & 0xfffff;
    const int ra = (a >> 48) * 2, rb = (b >> 48) * 2;
    for (int half = 0; half < 2; ++half) {
      float x[16];
      for (int k = 0; k < 16; ++k)
        x[k] = emul_at(A + (16 * warp + lane / 4 + 8 * half) * ra + 2 * k);
      for (int n = 0; n < kN / 8; ++n)
        for (int e = 0; e < 2; ++e) {
          float s = accumulate ? d[4 * n + 2 * half + e] : 0;
          for (int k = 0; k < 16; ++k)
            s += x[k] * emul_at(B + (8 * n + 2 * (lane % 4) + e) * rb + 2 * k);
          d[4 * n + 2 * half + e] = s;
        }
    }
  }
  static void registers(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, int accumulate) {
    const int lane = threadIdx.x % 32;
    const uint32_t B = b & 0xfffff;
    const int panel = b >> 20 & 0xfffffff, columns = b >> 48;
    uint32_t row[4][4];  // [lane of quad][register]
    for (int j = 0; j < 4; ++j)
      for (int t = 0; t < 4; ++t) row[t][j] = emul_exchange(a[j], lane / 4 * 4 + t);
    for (int half = 0; half < 2; ++half) {
      float x[16];
      for (int k = 0; k < 16; ++k) {
        uint32_t w = row[k % 8 / 2][half + k / 8 * 2];
        __nv_bfloat16 v;
        v.x = k % 2 ? w >> 16 : w & 0xffff;
        x[k] = __bfloat162float(v);
      }
      for (int n = 0; n < kN / 8; ++n)
        for (int e = 0; e < 2; ++e) {
          const int c = 8 * n + 2 * (lane % 4) + e;
          float s = accumulate ? d[4 * n + 2 * half + e] : 0;
          for (int k = 0; k < 16; ++k)
            s += x[k] * emul_at(B + k * columns * 2 + c / columns * panel + c % columns * 2);
          d[4 * n + 2 * half + e] = s;
        }
    }
  }
};
}  // namespace jax_baracuda
