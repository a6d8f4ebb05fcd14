#include "harness.cuh"
#include "int4/config.h"
extern "C" int fi_launch(int, int, int, int, const void*, const void*, cudaStream_t);
extern "C" int g_map_rows;
static double mid(std::vector<double> v) { std::sort(v.begin(), v.end()); return v[v.size() / 2]; }
static float* g_ws;
int main() {
  CHECK(cudaMalloc(&g_ws, 64 << 20));
  Layer<__half> layer(4096, 4096, 128, 2048, false);
  auto L = [&](int tile, int splits, int rows) { return [=](const Int4Shape& s, Int4Params p, cudaStream_t st) { g_map_rows = rows; p.partials = g_ws; auto e = (cudaError_t)fi_launch(1, tile, splits, 0, &s, &p, st); g_map_rows = 0; return e; }; };
  printf("4096x4096, us: M | 128x128.2/2, map of M rows, of 256 rows | /1: the same | 128x64.2/1, the same\n");
  for (int m : {1, 33, 64, 65, 96, 127, 128, 129, 130, 136, 144, 160, 176, 184, 189, 190, 191, 192, 193, 224, 256, 257, 320, 384}) {
    std::vector<double> t[6];
    for (int r = 0; r < 3; ++r) { int j = 0; for (auto k : {std::pair<int,int>{8, 2}, {8, 1}, {5, 1}}) for (int full : {0, 512}) { if (m > 256 && k.second == 2 || m > 4 * (k.first == 8 ? 128 : 64)) { t[j++].push_back(0); continue; } t[j++].push_back(layer.time(L(k.first, k.second, full), m, 3, 600)); } }
    printf("%4d |", m); for (int j = 0; j < 6; ++j) printf(" %.1f%s", mid(t[j]), j % 2 ? " |" : ""); printf("\n"); fflush(stdout);
  }
}
