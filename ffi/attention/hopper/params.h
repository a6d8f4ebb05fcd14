// What the Hopper forward kernel needs beyond the problem: tensor maps of the operands and the order of the tiles.
#pragma once

#include <cuda.h>  // CUtensorMap; nothing of it is linked

#include "attention/params.h"

namespace jax_baracuda {

// How the tiles of query rows are handed out. A row of tiles is a (sequence, head). Rows are taken in sections whose keys
// and values stay in the L2 cache, and in a section the last tiles of all rows come first: under a causal mask those
// see the most keys, and the short ones fill the gaps at the end.
struct TileOrder {
  int tiles;  // of a row
  int rows;
  int section;   // rows
  int* counter;  // tiles taken so far beyond one a CTA; starts at 0
};

// A block of keys from pages: so many boxes of so many rows, a divisor of the block and of a page.
struct PageBoxes {
  int count, rows;
};

struct HopperForwardParams {
  CUtensorMap query, key, value;
  ForwardParams problem;
  TileOrder order;  // of keys in pages only the counter: see SequenceWalk
  PageBoxes boxes;
};

}  // namespace jax_baracuda
