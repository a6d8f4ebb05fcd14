// What the Hopper forward kernel needs beyond the problem: tensor maps of the operands and the order of the tiles.
#pragma once

#include <cuda.h>  // CUtensorMap; nothing of it is linked

#include "attention/params.h"
#include "common/divisor.h"

namespace jax_baracuda {

// How the tiles of query rows are handed out. A row of tiles is a (sequence, head). Rows are taken in sections whose keys
// and values stay in the L2 cache, and in a section the last tiles of all rows come first: under a causal mask those
// see the most keys, and the short ones fill the gaps at the end.
struct TileOrder {
  int tiles;  // of a row
  int rows;
  int section;   // rows
  int* counter;  // tiles taken so far beyond one a CTA; starts at 0. Null: there are none
};

// Calls with few tiles (TileUse::kFewTiles) and with pages. The rows of a tile are those of `packed` heads, row by row, and
// a tile's blocks of keys are cut into `splits` spans, of which a CTA takes one; with pages `splits` is 1.
struct FewTiles {
  Divisor packed;
  int rows;  // of the sequence, in a tile
  int splits;
  float* out;  // of the splits, where there are several: [splits, packs * q_rows, Hq, Dv]
  float* lse;  // [splits, packs * q_rows, Hq]
};

// A block of keys from pages: so many boxes of so many rows, a divisor of the block and of a page.
struct PageBoxes {
  int count, rows;
};

// A soft cap so small that weights are numbers of bfloat16, and their sums of float32, without a maximum that is taken from scores.
// Scores s to exponents: scale tanh(factor s), where |s| is no more than `most` nearly s (linear + cubic s^2 + quintic s^4).
struct CapExponents {
  float factor, scale;
  float linear, cubic, quintic;
  int most_bits;  // of `most`, which is positive
};

struct HopperForwardParams {
  CUtensorMap query, key, value;
  ForwardParams problem;
  TileOrder order;  // with pages only the counter: see SequenceWalk
  FewTiles few;
  PageBoxes boxes;
  CUtensorMap bias;  // for tiles of kBias
  CUtensorMap out;   // boxes of a warp's 16 rows, for staged tiles
  CapExponents cap;  // for tiles of kBoundedCap
};

}  // namespace jax_baracuda
