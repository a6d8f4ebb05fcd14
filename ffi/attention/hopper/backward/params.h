// What the Hopper backward kernels need beyond the problem: tensor maps, the order of the tiles and the workspace.
#pragma once

#include <cuda.h>  // CUtensorMap; nothing of it is linked

#include "attention/backward/params.h"

namespace jax_baracuda {

struct HopperBackwardParams {
  CUtensorMap query, dout, key, value;
  BackwardParams problem;  // lse2, dq_sum and turns: see below

  // A tile is a block of keys of a (sequence, key/value head), a row of tiles.
  int tiles, rows;
  int section;  // rows whose first tiles come first, then their second ones
  int last;     // the same for so many rows at the end, that the CTAs end together
  int wave;  // so many tiles of a section go over their rows backwards, the next ones forwards; 0: all forwards
  int lag;  // in order, so many rows of a wave that goes forwards come last, backwards, see TurningWalk
  int reverse;   // so many rows, the first ones, have their last tile first, see reversed()
  int* counter;  // of tiles handed out

  // Whether the last tile of a row is taken first and adds to dQ first; tiles then go over query rows forwards. In the
  // other rows the first one does, and in deterministic calls tiles go backwards. Either way, where a diagonal bounds what
  // tiles see, one that begins together with the one before it meets their rows later, or at the same time.
  constexpr bool reversed(int row) const { return row < reverse; }

  // Where the main kernel turns sums into dQ itself, see conversion.cuh; else `done` is null and there is a sum a row
  // block.
  int* done;       // [rows]: tiles whose terms have been added
  int* converted;  // [rows]: row blocks whose sums are clear again
  int* ticket;     // of row blocks handed out
  int sum_rows;    // row r has the sums of row r + sum_rows, too
  int row_blocks;  // of a row of tiles
  int sum_blocks;  // of so many rows

  // The last tiles, so many, are divided by query rows into `parts`, a CTA each, see parts.cuh; else there are none and one part.
  int divided, parts;
  int places;     // tiles and parts of tiles
  float* left;    // [divided][warps of consumers][parts]: a warp's dK and dV
  int* left_all;  // [divided][warps of consumers]: parts of which they are there
};

// The gradient of a bias, see bias_gradient.cuh.
struct HopperBiasGradParams {
  CUtensorMap query, dout, key, value;
  BiasGradParams problem;
};

// The workspace counts query rows in blocks of a kernel's kRows, each of one sequence. Block b of a (pack, head) has
//   lse2:   kRows statistics {LSE in base 2, +inf where a row counts for nothing}, then kRows of delta, negated where
//           dP begins with it (kBeginsWithDelta)
//   dq_sum: kRows x D floats, in the order in which lanes hold them (see around.cuh)
//   turns:  for each part of dq_sum (HopperBackwardTile::turns()), how many blocks of keys have been added
// Sequence s of a pack starts with block q_begin / kRows + s.
inline int row_blocks_of_pack(const AttentionProblem& p, int block_rows) {
  return p.cu_seqlens_q ? p.q_rows / block_rows + p.sequences
                        : (p.q_rows + block_rows - 1) / block_rows;
}

}  // namespace jax_baracuda
