// What a launch of a Hopper kernel (medium.cuh, large.cuh) needs to know.
#pragma once

#include <cuda.h>

#include "int4/params.h"

namespace jax_baracuda {

struct HopperParams {
  Int4Params problem;
  CUtensorMap x;     // boxes of 64 columns and as many rows as are loaded at a time
  CUtensorMap out;   // large.cuh: boxes of 64 channels and half as many rows as a tile
  bool whole_lines;  // whether there is that map: rows of the output are multiples of 16 bytes
  int row_blocks, channel_blocks;
  // large.cuh: row blocks that are taken together; tiles that are not divided and those that are, and how: so much depth a
  // pair of CTAs, and one more the first ones.
  int section;
  int whole_tiles, stream_tiles, stream_units, longer_streams;
};

}  // namespace jax_baracuda
