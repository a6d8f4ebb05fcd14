// How the rows are spread over threads. Host only, compiles without nvcc.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cache/params.h"

namespace jax_baracuda {

inline constexpr int kRowThreads = 128;  // of a CTA
inline constexpr int kRowBatch = 4;      // rows that a thread has under way

// Whether all pieces of a row, and both halves of what is rotated, are whole 16 bytes.
inline bool fits_vectors(const RowParams& p, DType dtype) {
  const int piece = 16 / element_bytes(dtype);
  for (int i = 0; i < p.set_count; ++i) {
    const RowSet& set = p.sets[i];
    const auto addresses =
        reinterpret_cast<uintptr_t>(set.source) | reinterpret_cast<uintptr_t>(set.target);
    if (addresses % 16 != 0 || set.dim % piece != 0 || set.rotary_dim / 2 % piece != 0)
      return false;
  }
  return true;
}

// Fills in the chosen parts of the parameters. A unit is two pieces of a row, which one lane loads; enough lanes for
// a row share a token and take its heads in turn, so that an angle is worked out once for many heads. A slice has
// as many heads as leaves the GPU (of `sms` multiprocessors) full.
inline void choose_row_layout(const RowPlan& plan, int sms, RowParams* p) {
  constexpr int kMostSliceHeads = 32;
  constexpr int64_t kMostSlices = 65535;  // of a grid in its second dimension
  const int64_t wanted_threads = int64_t{sms} * 1024;
  const int piece = plan.vector ? 16 / element_bytes(plan.dtype) : 1;
  int units = 1;
  for (int i = 0; i < p->set_count; ++i) {
    RowSet& set = p->sets[i];
    set.rotary_units = set.rotary_dim / 2 / piece;
    set.units = set.rotary_units + (set.dim - set.rotary_dim + 2 * piece - 1) / (2 * piece);
    units = std::max(units, set.units);
  }
  p->lane_bits = 0;
  while (p->lane_bits < 5 && 1 << p->lane_bits < units) ++p->lane_bits;

  for (p->slice_heads = kMostSliceHeads;; p->slice_heads /= 2) {
    int64_t slices = 0;
    for (int i = 0; i < p->set_count; ++i) {
      RowSet& set = p->sets[i];
      set.slices = (set.heads + p->slice_heads - 1) / p->slice_heads;
      slices += set.slices;
    }
    const int64_t threads = slices * p->tokens << p->lane_bits;
    if (threads >= wanted_threads || p->slice_heads == 1 || 2 * slices > kMostSlices) return;
  }
}

}  // namespace jax_baracuda
