#include <cstdio>
#include <cstdlib>
#include <string>
#include "int4/config.h"
using namespace jax_baracuda;
int main() {
  const int layers[][2] = {{8192, 28672}, {4096, 4096}, {4096, 14336}, {14336, 4096}, {4096, 11008}, {4096, 1024}, {5120, 13824}, {8192, 8192}, {8192, 1024}, {4096, 6144}, {5120, 5120}, {11008, 4096}, {28672, 8192}};
  for (auto& l : layers) { printf("%d x %d:", l[0], l[1]);
    long before = 0;
    for (int m : {17, 24, 32, 33, 48, 64, 80, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048}) {
      Int4Shape s{}; s.rows = m; s.columns = l[0]; s.channels = l[1]; s.strips = (l[1] + 63) / 64; s.depth_tiles = (l[0] + 63) / 64; s.group_size = 128;
      Int4Device d{}; d.sms = 132; d.clusters = true; d.workspace_bytes = int4_workspace_bytes(m, (int64_t)s.strips * 64, s.depth_tiles);
      const HopperChoice c = choose_hopper(s, d); long ns;
      if (small_on_hopper(s, d, c)) { const SmallChoice k = choose_small(s, d); const SmallTile& t = kSmallTiles[k.tile]; printf(" \"small %dx%d d%d s%d\"", t.channels(), t.rows(), t.depth_warps, k.split.splits); ns = k.split.ns; }
      else { const HopperInt4Tile& t = c.medium ? kMediumTiles[c.tile] : kLargeTiles[c.tile]; printf(" \"%s %dx%d d%d s%d\"%s%s", c.medium ? "medium" : "large", t.channels(), t.n, t.depth_groups, c.split.splits, c.split.parts ? "w" : "", c.split.streamed ? "S" : ""); ns = c.split.ns; }
      if (ns < before) printf(" (!ns)"); before = ns; printf(" %.1f", ns / 1e3);
    } printf("\n"); }
}
