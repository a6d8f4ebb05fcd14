#include "harness.cuh"
#include "int4/config.h"
extern "C" int fi_launch(int, int, int, int, const void*, const void*, cudaStream_t);
extern "C" int g_map_rows;
static double mid(std::vector<double> v) { std::sort(v.begin(), v.end()); return v[v.size() / 2]; }
static float* g_ws;
int main() {
  CHECK(cudaMalloc(&g_ws, 64 << 20));
  for (auto shape : {std::pair<int,int>{4096, 4096}, {4096, 14336}}) {
  Layer<__half> layer(shape.first, shape.second, 128, 2048, false);
  auto L = [&](int medium, int tile, int mode, int rows) { return [=](const Int4Shape& s, Int4Params p, cudaStream_t st) { g_map_rows = rows; p.partials = g_ws; auto e = (cudaError_t)fi_launch(medium, tile, 1, mode, &s, &p, st); g_map_rows = 0; return e; }; };
  printf("%dx%d, us: M | large 256/1, map of M rows, of 2048 rows | divided: the same | 256x128/1: the same\n", shape.first, shape.second);
  for (int m : {130, 200, 260, 300, 384, 400, 512, 520, 640, 768, 800, 1024, 1040, 1100}) {
    std::vector<double> t[6];
    for (int r = 0; r < 3; ++r) { int j = 0; for (int k = 0; k < 3; ++k) for (int full : {0, 2048}) { if (k == 2 && m > 512) { t[j++].push_back(0); continue; } t[j++].push_back(layer.time(L(k == 2, k == 2 ? 7 : 1, k == 1, full), m, 3, 500)); } }
    printf("%4d |", m); for (int j = 0; j < 6; ++j) printf(" %.1f%s", mid(t[j]), j % 2 ? " |" : ""); printf("\n"); fflush(stdout);
  } }
}
