// How the rows are spread over threads. Host only, compiles without nvcc.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cache/params.h"

namespace jax_baracuda {

// Of a CTA, and units that each of its threads has under way: 16 KB a CTA (docs/cache.md has the others).
inline constexpr int kRowThreads = 256;
inline constexpr int kRowBatch = 2;
// Of a CTA's shared memory for the turns of its tokens, unless one token alone has more.
inline constexpr int kMostTurnBytes = 32 * 1024;
inline constexpr int kMostRotaryColumns = 32 * 1024;  // the turns of one token are then 128 KB

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

// Bytes of the turns of a token.
inline int turn_bytes(const RowSet& set) { return set.rotary_dim / 2 * 8; }

// Cuts a set in tiles for `threads` threads (a power of two) that have `batch` units each: as many heads as fit, then as
// many tokens, but one a thread. `piece`: elements.
inline void cut_tiles(int tokens, int piece, int threads, int batch, RowSet* set) {
  const int rotary_units = set->rotary_dim / 2 / piece;
  set->units = rotary_units + (set->dim - set->rotary_dim + 2 * piece - 1) / (2 * piece);
  set->rotary_units = Divisor(static_cast<uint32_t>(std::max(1, rotary_units)));
  set->turns = Divisor(static_cast<uint32_t>(std::max(1, set->rotary_dim / 2)));
  set->lane_bits = 0;
  while (1 << set->lane_bits < std::min(set->units, threads)) ++set->lane_bits;
  const int rows = threads * batch >> set->lane_bits;
  const int slices = std::max(1, (set->heads + rows - 1) / rows);
  set->tile_heads = std::max(1, (set->heads + slices - 1) / slices);
  const int most_tokens = kMostTurnBytes / std::max(1, turn_bytes(*set));
  set->tile_tokens = std::max(1, std::min({rows / set->tile_heads, tokens, threads, most_tokens}));
  set->head_inner = set->source_head <= set->source_token;
  set->inner = Divisor(static_cast<uint32_t>(set->head_inner ? set->tile_heads : set->tile_tokens));
  set->head_slices = Divisor(static_cast<uint32_t>(slices));
  const int64_t blocks = (int64_t{tokens} + set->tile_tokens - 1) / set->tile_tokens;
  set->ctas = set->heads == 0 || set->dim == 0 ? 0 : static_cast<int>(blocks * slices);
}

// Bytes of shared memory: where a tile's tokens go, then their turns.
inline int row_shared_bytes(const RowSet& set) {
  return (set.tile_tokens * 8 + 15) / 16 * 16 + set.tile_tokens * turn_bytes(set);
}

// Fills in the chosen parts of the parameters; the sum of the sets' CTAs. Tiles are full where there are enough of them
// for the GPU (of `sms` multiprocessors), else down to a unit a thread.
inline int64_t choose_row_layout(const RowPlan& plan, int sms, RowParams* p,
                                 int threads = kRowThreads, int batch = kRowBatch) {
  const int piece = plan.vector ? 16 / element_bytes(plan.dtype) : 1;
  for (;; batch /= 2) {
    int64_t ctas = 0;
    p->shared_bytes = 0;
    for (int i = 0; i < p->set_count; ++i) {
      cut_tiles(p->tokens, piece, threads, batch, &p->sets[i]);
      ctas += p->sets[i].ctas;
      p->shared_bytes = std::max(p->shared_bytes, row_shared_bytes(p->sets[i]));
    }
    if (ctas >= 2 * sms || batch == 1) return ctas;
  }
}

}  // namespace jax_baracuda
