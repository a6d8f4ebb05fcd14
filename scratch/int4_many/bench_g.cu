#include "harness.cuh"
#define TREE(n) extern "C" int n##_launch(int, int, int, int, const void*, const void*, cudaStream_t); extern "C" void n##_plan(const void*, int*);
TREE(fin) TREE(fi3)
extern "C" { int g_skip_combine; }
struct Kind { int tree, medium, tile, splits, streamed; };
static float* g_ws;
static cudaError_t run(const Kind& k, const Int4Shape& s, Int4Params p, cudaStream_t st) {
  p.partials = g_ws;
  return (cudaError_t)(k.tree ? fi3_launch : fin_launch)(k.medium, k.tile, k.splits, k.streamed, &s, &p, st);
}
static Launch launch_of(Kind k) { return [k](const Int4Shape& s, Int4Params p, cudaStream_t st) { return run(k, s, p, st); }; }
static const int n_of[] = {32, 32, 32, 32, 64, 64, 64, 128, 128}, ch_of[] = {256, 128, 64, 448, 256, 128, 448, 256, 128};
static std::string name_of(const Kind& k) {
  static const char* m[] = {"256x32.2", "128x32.4", "64x32.8", "448x32", "256x64", "128x64.2", "448x64", "256x128", "128x128.2"};
  static const char* l[] = {"128x128", "128x256"};
  char t[64]; snprintf(t, 64, "%s%s/%d%s", k.medium ? "m" : "L", (k.medium ? m : l)[k.tile], k.splits, k.streamed == 2 ? "w" : k.streamed ? "s" : ""); return t;
}
template <class T> void checks() {
  const int before = g_failures; int n = 0; const double start = elapsed();
  for (int group : {128, 64, 32, 0, 192}) {
    const auto with = [&](const Kind& k, Case c) { c.group = group; if ((c.ic + 127) / 128 < k.splits) return; check<T>(name_of(k).c_str(), launch_of(k), c); ++n; };
    const int ic = group == 192 ? 1152 : 1096;
    if (false)
    for (int tile = 0; tile < 9; ++tile) for (int splits : {1, 2, 3, 4, 8}) for (int w : {0, 2}) {
      if ((tile == 7 && splits > 1 && !w) || (splits == 1 && w) || (!w && (splits == 3 || n_of[tile] / 8 % splits))) continue;
      with({1, 1, tile, splits, w}, {n_of[tile] + 5, ic, 203, 0, -1, true, 20});
      with({1, 1, tile, splits, w}, {n_of[tile] - 9, group == 192 ? 4608 : 4160, 1088, 0, -1, false, -1});
      if (splits < 3) with({1, 1, tile, splits, w}, {33, group == 192 ? 384 : 200, 66, 0, 16, true, 0});
    }
    for (int splits : {1, 2, 4, 8}) { with({1, 0, 0, splits, 0}, {300, ic, 136, 0, 15, true, 20}); with({1, 0, 0, splits, 0}, {129, group == 192 ? 4608 : 4160, 251, 0, 15, true, -1}); }
    for (int s : {0, 1}) for (Case c : {Case{129, group == 192 ? 768 : 712, 251, 0, -1, true, 7}, Case{256, 4608, 1088, 0, -1, false, -1}, Case{300, ic, 136, 0, 15, true, 20}, Case{513, group == 192 ? 2112 : 2056, 520, 0, 16, true, 512}, Case{1000, 1152, 8320, 0, -1, true, 999}, Case{257, 8, 65, 0, -1, true, 3}, Case{2100, 384, 5002, 0, -1, true, 100}, Case{40, 4608, 17000, 0, -1, false, -1}, Case{600, 1152, 8444, 0, -1, true, -1}}) with({1, 0, 1, 1, s}, c);
  }
  printf("%s: %d cases, %d failures, %.1f s\n", dtype_of<T>() == DType::kF16 ? "f16" : "bf16", n, g_failures - before, elapsed() - start); fflush(stdout);
}
static const std::pair<int, int> kLayers[] = {{8192, 28672}, {4096, 4096}, {4096, 14336}, {14336, 4096}, {8192, 8192}, {4096, 11008}, {5120, 13824}, {4096, 1024}};
int main(int argc, char** argv) {
  CHECK(cudaMalloc(&g_ws, 64 << 20));
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check") { checks<__half>(); checks<__nv_bfloat16>(); printf("%s, %.1f s\n", g_failures ? "FAILED" : "ALL OK", elapsed()); return g_failures != 0; }
  Cublas cublas; const bool have = cublas.load();
  const double limit = argc > 2 ? atof(argv[2]) : 20;
  for (auto [ic, oc] : kLayers) {
    if (elapsed() > limit) { printf("out of time\n"); break; }
    Layer<__half> layer(ic, oc, 128, 4096, have); Layer<__nv_bfloat16> bf(ic, oc, 128, 1024, false);
    printf("== %d x %d: reading %.2f\n", ic, oc, layer.time_read());
    for (int m : {17, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096}) {
      int a[4], b[4]; const Int4Shape s = layer.shape(m); fin_plan(&s, a); fi3_plan(&s, b);
      const Kind o = {0, a[0], a[1], a[2], a[3]}, n = {1, b[0], b[1], b[2], b[3]};
      CHECK(run(o, s, layer.params(m, 0), nullptr)); CHECK(run(n, s, layer.params(m, 0), nullptr)); if (m <= 1024) CHECK(run(n, bf.shape(m), bf.params(m, 0), nullptr)); CHECK(cudaDeviceSynchronize());
      std::vector<double> tc, to, tn, tb;
      for (int r = 0; r < 3; ++r) {
        tc.push_back(have ? layer.time_cublas(cublas, m, 3, 2000) : 0);
        to.push_back(layer.time(launch_of(o), m, 3, 1500)); tn.push_back(layer.time(launch_of(n), m, 3, 1500)); if (m <= 1024) tb.push_back(bf.time(launch_of(n), m, 3, 1500));
      }
      for (auto* v : {&tc, &to, &tn, &tb}) std::sort(v->begin(), v->end());
      printf("M %4d cuBLAS %8.2f | old %-14s %8.2f %5.2fx | new %-14s %8.2f %5.2fx | %+.1f%%", m, tc[1], name_of(o).c_str(), to[1], tc[1] / to[1], name_of(n).c_str(), tn[1], tc[1] / tn[1], (tn[1] / to[1] - 1) * 100);
      if (m <= 1024) printf(" | bf16 %+.1f%%", (tb[1] / tn[1] - 1) * 100);
      printf("\n"); fflush(stdout);
    }
  }
  printf("%.1f s\n", elapsed());
}
