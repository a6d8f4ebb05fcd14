#include <cstdio>
#include "int4/config.h"
using namespace jax_baracuda;
int main() { int bad = 0;
  const int layers[][2] = {{8192,28672},{4096,4096},{4096,14336},{14336,4096},{4096,11008},{4096,1024},{5120,13824},{8192,8192}};
  for (auto& l : layers) { int64_t last = 0;
    for (int m = 17; m < 2100; m += 9) { Int4Shape s = {DType::kF16, m, l[0], l[1], l[1] / 64, l[0] / 64, 128}; Int4Device d = {132, true, int4_workspace_bytes(m, l[1], l[0] / 64)};
      HopperChoice h = choose_hopper(s, d); if (small_on_hopper(s, d, h)) continue; const HopperInt4Tile& t = h.medium ? kMediumTiles[h.tile] : kLargeTiles[h.tile];
      int64_t ctas = ceil_divide(l[1], t.channels()) * ceil_divide(m, t.n) * h.split.splits; if (h.split.splits > 1 && ctas > 132) { ++bad; printf("%d %d %d ctas %ld\n", l[0], l[1], m, (long)ctas); } }
    for (int m : {32, 64, 128, 256, 512, 1024, 4096}) { Int4Shape s = {DType::kF16, m, l[0], l[1], l[1] / 64, l[0] / 64, 128}; Int4Device d = {132, true, int4_workspace_bytes(m, l[1], l[0] / 64)}; HopperChoice h = choose_hopper(s, d); if (h.split.ns < last) { ++bad; printf("%d %d %d time\n", l[0], l[1], m); } last = h.split.ns; } }
  printf("bad %d\n", bad); }
