// What a launch of the Hopper kernel for many rows needs to know.
#pragma once

#include <cuda.h>

#include "int4/params.h"

namespace jax_baracuda {

struct LargeParams {
  Int4Params problem;
  CUtensorMap x;  // boxes of 64 columns and as many rows as a tile
  int row_blocks, channel_blocks;
  int section;      // row blocks that are taken together
  uint64_t policy;  // of weights in L2
};

}  // namespace jax_baracuda
