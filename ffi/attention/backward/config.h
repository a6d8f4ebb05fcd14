// Tile shapes of the backward kernel and the choice among them. Host-safe.
#pragma once

#include "attention/params.h"
#include "common/dtype.h"

namespace jax_baracuda {

// A CTA takes a block of keys and goes over the query rows that see them, `rows` at a time. Scores
// are held transposed: keys along the rows of the accumulators.
struct BackwardTile {
  int dim, dim_v;  // head dims rounded up to these
  int keys, rows, warps;
  // How the warps lie in the scores [keys, rows] (warps too many are idle), in dK and dV [keys,
  // dim] (the other warps lie along the columns) and in dQ [rows, dim] (the same).
  int score_keys, score_rows, grad_keys, query_rows;
  // A warp takes its keys against all rows and multiplies its weights from registers; else they go
  // through shared memory, so that warps may divide dK and dV otherwise.
  bool in_registers;
  int ctas;  // an SM is to hold at least
  // Two buffers of weights and gradients: a warp may begin with the next rows while others multiply
  // those before.
  bool ahead = false;

  constexpr int shared_bytes(int element, int stages) const {
    const int padding = element == 2 ? 16 : 0;  // of a row: see PaddedTile
    const int input = (dim + dim_v) * element + 2 * padding;
    const int scores = (in_registers ? 1 : 2) * (ahead ? 2 : 1) * keys * (rows * element + padding);
    return (keys + stages * rows) * input + scores +
           stages * rows * 2 * static_cast<int>(sizeof(float));
  }
  constexpr bool operator==(const BackwardTile& o) const {
    return dim == o.dim && dim_v == o.dim_v && keys == o.keys;
  }
};

// In order of preference. Those after the first of a head dim are for SMs with 99 KB of shared
// memory.
constexpr BackwardTile kBackwardTiles16[] = {
    {32, 32, 128, 64, 4, 4, 1, 4, 4, true, 2},          {64, 64, 128, 64, 4, 4, 1, 4, 2, true, 2},
    {96, 96, 128, 64, 8, 4, 2, 4, 4, false, 1},         {96, 96, 64, 64, 8, 4, 2, 4, 4, false, 1},
    {128, 128, 128, 64, 8, 4, 2, 4, 2, false, 1, true}, {128, 128, 64, 64, 8, 4, 2, 2, 2, false, 1},
    {192, 128, 64, 64, 8, 2, 4, 2, 2, false, 1},        {192, 192, 64, 64, 8, 2, 4, 2, 2, false, 1},
    {192, 192, 32, 64, 8, 2, 4, 2, 2, false, 1},        {256, 256, 64, 64, 8, 2, 4, 2, 2, false, 1},
    {256, 256, 32, 32, 8, 2, 2, 2, 2, false, 1},
};
constexpr BackwardTile kBackwardTiles32[] = {
    {64, 64, 64, 64, 8, 4, 2, 4, 4, false, 1},   {128, 128, 64, 32, 8, 4, 2, 2, 2, false, 1},
    {128, 128, 32, 32, 8, 2, 2, 2, 2, false, 1}, {256, 256, 32, 32, 8, 2, 2, 2, 2, false, 1},
    {256, 256, 16, 16, 4, 1, 1, 1, 1, false, 1},
};

inline constexpr int kBackwardStaticBytes =
    1024;  // shared memory that the kernel declares itself, at most

// The first tile that holds the head dims and that an SM holds, with two buffers of query rows if
// they fit.
struct BackwardChoice {
  const BackwardTile* tile;  // null: none
  int stages;
};
inline BackwardChoice choose_backward_tile(DType dtype, int dim, int dim_v, int max_shared) {
  const int element = dtype == DType::kF32 ? 4 : 2;
  auto choose = [&](const auto& tiles) -> BackwardChoice {
    for (const BackwardTile& tile : tiles) {
      if (dim > tile.dim || dim_v > tile.dim_v) continue;
      for (int stages = 2; stages > 0; --stages)
        if (tile.shared_bytes(element, stages) <= max_shared) return {&tile, stages};
    }
    return {nullptr, 0};
  };
  return dtype == DType::kF32 ? choose(kBackwardTiles32) : choose(kBackwardTiles16);
}

}  // namespace jax_baracuda
