#include "harness.cuh"
#include "int4/config.h"
#define TREE(n) extern "C" int n##_launch(int, int, int, int, const void*, const void*, cudaStream_t); extern "C" void n##_plan(const void*, int*);
TREE(fi) TREE(w2) TREE(n1) TREE(n2) TREE(n3) TREE(n5) TREE(c5)
extern "C" { int g_skip_combine; }
static float* g_ws;
static decltype(&fi_launch) const kLaunch[] = {fi_launch, w2_launch, n1_launch, n2_launch, n3_launch, n5_launch, c5_launch};
static const char* kName[] = {"before", "wide", "no-corrections", "chunk2", "evict-first", "no-dequant", "chunks5"};
static Launch L(int tree, int medium, int tile, int splits, int mode) { return [=](const Int4Shape& s, Int4Params p, cudaStream_t st) { p.partials = g_ws; return (cudaError_t)kLaunch[tree](medium, tile, splits, mode, &s, &p, st); }; }
static double mid(std::vector<double> v) { std::sort(v.begin(), v.end()); return v[v.size() / 2]; }
template <class T> void checks() {
  int n = 0; const int before = g_failures; if (!g_ws) CHECK(cudaMalloc(&g_ws, 64 << 20)); const bool f16 = dtype_of<T>() == DType::kF16;
  for (int tile : {3, 9, 8}) for (int group : {128, 0, 256}) for (int sp : {1, 2, 4, 3}) for (int w : {0, 2}) { if (w && sp == 1 || sp == 3 && !w || tile == 8 && (!f16 || group) || tile == 9 && sp == 4 && !w) continue;
    char name[64]; snprintf(name, 64, "wide tile %d/%d%s", tile, sp, w ? "w" : "");
    const auto go = [&](Case c) { c.group = group; if ((c.ic + 127) / 128 < sp) return; check<T>(name, L(1, 1, tile, sp, w), c, nullptr, n < 3); ++n; };
    const int N = tile == 9 ? 16 : 32;
    if (tile == 8) { for (int m : {129, 200, 257, 128, 100, 300}) go({m, 1096, 520, 0, -1, true, m == 200 ? 130 : -1}); continue; }
    go({N, 2048, 896, 0, -1, true, -1}); go({N, 1024, 448, 0, -1, false, -1}); go({N - 3, 1096, 1000, 0, 15, true, 10}); go({17, 8192, 1344, 0, -1, true, -1}); go({33, 712, 520, 0, 16, true, 3}); go({7, 8, 72, 0, 3, true, -1}); go({50, 3000, 451, 0, 8, true, 40}); go({1, 136, 64, 0, -1, true, -1}); go({N, 4096, 1792, 0, -1, true, 5}); }
  printf("%s: %d cases, %d failures, %.1f s\n", f16 ? "f16" : "bf16", n, g_failures - before, elapsed()); fflush(stdout);
}
template <class T> void timings(bool have, Cublas& cublas, int ic, int oc, int m, int tile, int splits, std::vector<int> trees, std::vector<double> budgets) {
  static Layer<T>* layer = nullptr; static int li = 0, lo = 0; if (li != ic || lo != oc) { delete layer; layer = new Layer<T>(ic, oc, 128, 512, have); li = ic; lo = oc; }
  for (double budget : budgets) {
    const size_t n = trees.size(); std::vector<std::vector<double>> t(n + 1), g(n + 1); const int rounds = budget > 10000 ? 3 : 7;
    for (int r = 0; r < rounds; ++r) for (size_t j = 0; j <= n; ++j) { const size_t i = r % 2 ? n - j : j; if (i == n) t[i].push_back(have ? layer->time_cublas(cublas, m, 3, std::min(budget, 6000.0)) : 0); else {
      const Launch l = L(trees[i], 1, tile, splits, 0); const int count = std::max<int>(std::min(layer->copies, 20), budget / 45);
      t[i].push_back(time_graph(count, [&](int k, cudaStream_t s) { CHECK(l(layer->shape(m), layer->params(m, k % layer->copies), s)); }, 3)); } g[i].push_back(g_ghz); }
    printf("%s %dx%d M%d tile %d %s: cuBLAS %.1f (%.2f)", dtype_of<T>() == DType::kF16 ? "f16" : "bf16", ic, oc, m, tile, budget > 10000 ? "long" : "short", mid(t[n]), mid(g[n]));
    for (size_t i = 0; i < n; ++i) printf(" | %s %.2f %.2fx (%.2f) %+.1f%%, cyc %+.1f%%", kName[trees[i]], mid(t[i]), mid(t[n]) / mid(t[i]), mid(g[i]), (mid(t[i]) / mid(t[0]) - 1) * 100, (mid(t[i]) * mid(g[i]) / mid(t[0]) / mid(g[0]) - 1) * 100); printf("\n"); fflush(stdout);
  }
}
int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check") { checks<__half>(); checks<__nv_bfloat16>(); printf("%s %.1f s\n", g_failures ? "FAILED" : "ALL OK", elapsed()); return 0; }
  CHECK(cudaMalloc(&g_ws, 64 << 20));
  if (what == "one") { Layer<__half> layer(8192, 28672, 128, 64, false); const Launch l = L(atoi(argv[2]), 1, 3, 2, 0); for (int i = 0; i < 4; ++i) { CHECK(l(layer.shape(32), layer.params(32, i % 2), nullptr)); CHECK(cudaDeviceSynchronize()); } return 0; }
  Cublas cublas; const bool have = cublas.load();
  timings<__half>(have, cublas, 8192, 28672, 32, 3, 2, {0, 1, 2, 3, 4, 5, 6}, {1500, 60000}); timings<__half>(have, cublas, 8192, 28672, 16, 9, 2, {0, 1}, {1500, 60000});
  timings<__nv_bfloat16>(have, cublas, 8192, 28672, 32, 3, 2, {0, 1, 6}, {1500, 60000}); timings<__nv_bfloat16>(have, cublas, 8192, 28672, 16, 9, 2, {0, 1}, {1500});
  timings<__half>(have, cublas, 4096, 28672, 32, 3, 2, {0, 1}, {1500});
  for (int m : {129, 160, 192, 256}) timings<__half>(have, cublas, 4096, 4096, m, 8, 2, {0, 1}, {1000});
  printf("%.1f s\n", elapsed());
}
