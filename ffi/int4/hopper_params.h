// What a launch of a Hopper kernel (medium.cuh, large.cuh) needs to know.
#pragma once

#include <cuda.h>

#include "int4/params.h"

namespace jax_baracuda {

struct HopperParams {
  Int4Params problem;
  CUtensorMap x;  // boxes of 64 columns and as many rows as a tile
  int row_blocks, channel_blocks;
  int section;  // row blocks that are taken together (large.cuh)
};

}  // namespace jax_baracuda
