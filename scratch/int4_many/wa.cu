#include "harness.cuh"
#include "int4/config.h"
#define TREE(n) extern "C" int n##_launch(int, int, int, int, const void*, const void*, cudaStream_t); extern "C" void n##_plan(const void*, int*);
TREE(fi) TREE(w1)
extern "C" { int g_skip_combine; }
static float* g_ws;
static decltype(&fi_launch) const kLaunch[] = {fi_launch, w1_launch};
static Launch L(int tree, int medium, int tile, int splits, int mode) { return [=](const Int4Shape& s, Int4Params p, cudaStream_t st) { p.partials = g_ws; return (cudaError_t)kLaunch[tree](medium, tile, splits, mode, &s, &p, st); }; }
static double mid(std::vector<double> v) { std::sort(v.begin(), v.end()); return v[v.size() / 2]; }
template <class T> void checks() {
  int n = 0; const int before = g_failures; static float* ws = nullptr; if (!ws) CHECK(cudaMalloc(&ws, 64 << 20)); g_ws = ws;
  for (int group : {128, 0, 256}) for (int sp : {1, 2, 4}) for (int w : {0, 2}) { if (w && sp == 1) continue;
    const auto go = [&](Case c) { c.group = group; if ((c.ic + 127) / 128 < sp) return; check<T>(w ? "w1 w" : "w1", L(1, 1, 3, sp, w), c, nullptr, n < 4); ++n; };
    go({32, 2048, 896, 0, -1, true, -1}); go({32, 1024, 448, 0, -1, false, -1}); go({29, 1096, 1000, 0, 15, true, 20}); go({17, 8192, 1344, 0, -1, true, -1}); go({33, 712, 520, 0, 16, true, 3}); go({7, 8, 72, 0, 3, true, -1}); go({70, 3000, 451, 0, 8, true, 40}); go({1, 136, 64, 0, -1, true, -1}); }
  printf("%s: %d cases, %d failures, %.1f s\n", sizeof(T) == 2 && dtype_of<T>() == DType::kF16 ? "f16" : "bf16", n, g_failures - before, elapsed()); fflush(stdout);
}
template <class T> void timings(bool have, Cublas& cublas, int ic, int oc, int m, int tile, int splits) {
  Layer<T> layer(ic, oc, 128, 64, have);
  for (double budget : {1500.0, 60000.0}) {
    std::vector<double> t[3], g[3]; const int rounds = budget > 10000 ? 3 : 9;
    for (int r = 0; r < rounds; ++r) for (int j = 0; j < 3; ++j) { const int i = r % 2 ? 2 - j : j; if (i == 2) { if (!have) { t[2].push_back(0); g[2].push_back(0); continue; } t[2].push_back(layer.time_cublas(cublas, m, 3, std::min(budget, 6000.0))); } else {
      const Launch l = L(i, 1, tile, splits, 0); const int count = std::max<int>(layer.copies, budget / 45);
      t[i].push_back(time_graph(count, [&](int k, cudaStream_t s) { CHECK(l(layer.shape(m), layer.params(m, k % layer.copies), s)); }, 3)); } g[i].push_back(g_ghz); }
    printf("%s %dx%d M%d %s: cuBLAS %.1f (%.2f GHz) | before %.2f %.2fx (%.2f) | wide %.2f %.2fx (%.2f) %+.1f%%, cycles %+.1f%%\n", dtype_of<T>() == DType::kF16 ? "f16" : "bf16", ic, oc, m, budget > 10000 ? "long" : "short", mid(t[2]), mid(g[2]), mid(t[0]), mid(t[2]) / mid(t[0]), mid(g[0]), mid(t[1]), mid(t[2]) / mid(t[1]), mid(g[1]), (mid(t[1]) / mid(t[0]) - 1) * 100, (mid(t[1]) * mid(g[1]) / mid(t[0]) / mid(g[0]) - 1) * 100); fflush(stdout);
  }
}
int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check") { checks<__half>(); checks<__nv_bfloat16>(); printf("%s %.1f s\n", g_failures ? "FAILED" : "ALL OK", elapsed()); return 0; }
  CHECK(cudaMalloc(&g_ws, 64 << 20));
  Cublas cublas; const bool have = cublas.load();
  timings<__half>(have, cublas, 8192, 28672, 32, 3, 2); timings<__nv_bfloat16>(have, cublas, 8192, 28672, 32, 3, 2);
  printf("%.1f s\n", elapsed());
}
