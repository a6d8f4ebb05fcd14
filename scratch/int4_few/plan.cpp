#include <cstdio>
#include "int4/config.h"
using namespace jax_baracuda;
int main() {
  const int layers[][2] = {{8192,28672},{4096,4096},{4096,14336},{14336,4096},{4096,11008},{4096,1024},{5120,13824},{8192,8192}};
  for (auto& l : layers) { printf("(%d, %d):", l[0], l[1]);
    for (int m : {1, 8, 16, 17, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 4096}) {
      Int4Shape s = {DType::kF16, m, l[0], l[1], l[1] / 64, l[0] / 64, 128};
      Int4Device d = {132, true, int4_workspace_bytes(m, l[1], l[0] / 64)};
      HopperChoice h; bool small = m <= kSmallRows;
      if (!small) { h = choose_hopper(s, d); small = small_on_hopper(s, d, h); }
      if (small) { d.workspace_bytes = d.workspace_bytes < kSmallBytes ? d.workspace_bytes : kSmallBytes; SmallChoice c = choose_small(s, d); const SmallTile& t = kSmallTiles[c.tile]; printf(" %d|small %dx%d d%d s%d (%.1f)", m, t.channels(), t.rows(), t.depth_warps, c.split.splits, c.split.ns / 1000.0); }
      else { const HopperInt4Tile& t = h.medium ? kMediumTiles[h.tile] : kLargeTiles[h.tile]; printf(" %d|%s %dx%d d%d s%d%s (%.1f)", m, h.medium ? "medium" : "large", t.channels(), t.n, t.depth_groups, h.split.splits, h.split.parts ? "w" : "", h.split.ns / 1000.0); }
    }
    printf("\n"); }
}
