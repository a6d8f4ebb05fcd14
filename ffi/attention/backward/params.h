// What the backward kernels need beyond the problem.
#pragma once

#include "attention/params.h"

namespace jax_baracuda {

struct BackwardParams : AttentionProblem {
  const void* out;
  const float* lse;  // [packs, Hq, q_rows]
  const void* dout;
  const float* dlse;  // null: none
  void* dq;
  void* dk;
  void* dv;
  float* delta;       // [packs, Hq, q_rows]: rowsum(dout * out) - dlse
  int deterministic;  // dq gets its terms in the order of the keys
  void* dbias;        // null: not wanted; of a bias that all rows share, like it

  // In the workspace.
  float* lse2;    // [packs, Hq, q_rows]: lse in base 2, inf instead of -inf
  float* dq_sum;  // [packs * q_rows, Hq, dq_width], columns in the order said below
  int dq_width;   // dim rounded up to 32
  int* turns;     // [packs, Hq, turn_count]: how many blocks of keys have added to a unit of rows
  int* tickets;   // how many CTAs have begun
  int turn_count;
  float* bias_sums;  // null: not wanted; [packs, Hq, k_rows]: the terms of dbias

  // The launch.
  int stages;     // buffers of query rows
  int key_slots;  // CTAs of a (sequence, key/value head)
};

struct BiasGradParams : AttentionProblem {
  const float* lse;
  const void* dout;
  const float* delta;
  void* dbias;
  int bias_rows, bias_keys;  // of bias: 1 or max_seqlen_q, max_seqlen_k
};

inline constexpr int kTurnUnit = 64;  // rows of a turn, unless a block of rows has more

// Turns of a (pack, head): those of a sequence start at turn q_begin / kTurnUnit + its number in
// the pack.
inline int turns_of_pack(const AttentionProblem& p) {
  return (p.q_rows + kTurnUnit - 1) / kTurnUnit + p.sequences;
}

// The columns of dq_sum: each 16 are ordered so that the four values that lane t holds lie
// together. Position 4t + e holds column 2t + e (e < 2) or 8 + 2t + e - 2.

}  // namespace jax_baracuda
