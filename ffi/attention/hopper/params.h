// What the Hopper forward kernel needs beyond the problem: tensor maps of the operands and the order of the tiles.
#pragma once

#include <cuda.h>  // CUtensorMap; nothing of it is linked

#include "attention/params.h"

namespace jax_baracuda {

// How the tiles of kM query rows are handed out. A row is a (sequence, head); rows are taken in sections whose keys and
// values stay in the L2 cache, and in a section the last tiles of all rows come first: under a causal mask those see
// the most keys.
struct TileOrder {
  int tiles;    // of a row
  int rows;     // sequences * heads
  int section;  // rows
  int* counter; // null: static rounds
  int snake;    // every second round goes through the CTAs backwards: long tiles meet short ones
};

struct HopperForwardParams {
  CUtensorMap query, key, value;
  ForwardParams problem;
  TileOrder order;
};

}  // namespace jax_baracuda
