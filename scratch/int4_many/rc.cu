#include "harness.cuh"
#include "int4/config.h"
#define TREE(n) extern "C" int n##_launch(int, int, int, int, const void*, const void*, cudaStream_t); extern "C" void n##_plan(const void*, int*);
TREE(fi) TREE(hv) TREE(he)
extern "C" { int g_skip_combine; }
struct Kind { int tree, medium, tile, splits, streamed; };  // streamed: 1 divided, 2 parts through the workspace
static float* g_ws;
static decltype(&fi_launch) const kLaunch[] = {fi_launch, hv_launch, he_launch};
static const char* kTree[] = {"", "hv:", "he:"};
static cudaError_t run(const Kind& k, const Int4Shape& s, Int4Params p, cudaStream_t st) {
  p.partials = g_ws; return (cudaError_t)kLaunch[k.tree](k.medium, k.tile, k.splits, k.streamed, &s, &p, st);
}
static Launch launch_of(Kind k) { return [k](const Int4Shape& s, Int4Params p, cudaStream_t st) { return run(k, s, p, st); }; }
static std::string name_of(const Kind& k) {
  static const char* m[] = {"256x32.2", "128x32.4", "64x32.8", "448x32", "256x64", "128x64.2", "448x64", "256x128", "128x128.2"};
  static const char* l[] = {"128x128", "128x256", "128x128.2", "256x128"};
  char t[64]; snprintf(t, 64, "%s%s%s/%d%s", kTree[k.tree], k.medium ? "m" : "L", (k.medium ? m : l)[k.tile], k.splits, k.streamed == 4 ? "t" : k.streamed == 2 ? "w" : k.streamed ? "s" : ""); return t;
}
static const HopperInt4Tile kDeep[] = {{2, 2, 128, 10, 330}, {4, 1, 128, 8, 660}};
static const HopperInt4Tile& tile_of(const Kind& k) { return k.medium ? kMediumTiles[k.tile] : k.tile >= 2 ? kDeep[k.tile - 2] : kLargeTiles[k.tile]; }
static bool possible(const Kind& k, const Int4Shape& s) {
  const auto& t = tile_of(k); const int64_t blocks = ceil_divide(s.rows, t.n) * ceil_divide(s.strips * 64, t.channels());
  if (k.streamed == 1) return !k.medium && k.tile == 1 && LargeDivision(s, 132, t).left > 0;
  if (!k.medium && k.tile == 1) return k.splits == 1;
  if (k.streamed == 2 && s.rows > 256) return false;
  if (k.splits > 1 && blocks * k.splits > (k.streamed ? 132 : running_ctas({132, true, 0}, 1, k.splits))) return false;
  if (k.splits > 1 && !k.streamed && !t.clusters(k.splits)) return false;
  if (k.medium && s.rows > 4 * t.n) return false;
  return s.depth_tiles / 2 >= k.splits;
}
static bool covered(const Kind& k, int group, bool bf) { return k.streamed != 4 && (k.tree == 1 || (k.medium && (k.tile == 7 || k.tile == 8))); }
template <class T> void checks() {
  const int before = g_failures; int n = 0; const double start = elapsed(); const bool bf = dtype_of<T>() == DType::kBF16;
  for (int group : {128, 64, 0, 32, 192}) for (int tree : {1, 2}) {
    const auto with = [&](Kind k, Case c) { k.tree = tree; if (!covered(k, group, bf) || elapsed() - start > 33) return; c.group = group; if ((c.ic + 127) / 128 < k.splits) return; check<T>(name_of(k).c_str(), launch_of(k), c); ++n; };
    const int ic = group == 192 ? 1152 : 1096;
    for (int tile = 0; tile < 9; ++tile) for (int sp : {1, 2, 3, 4, 8}) for (int w : {0, 2}) { const auto& t = kMediumTiles[tile]; if (sp == 1 && w || sp == 3 && !w || !w && sp > 1 && !t.clusters(sp)) continue; const Kind k = {tree, 1, tile, sp, w};
      if (group == 128 && tile >= 4) with(k, {t.n * 2, 2048, 2048, 0, -1, true, -1});
      with(k, {t.n * 2 + 13, ic, 136, 0, 15, true, 20}); with(k, {t.n - 5, group == 192 ? 1344 : 1280, 251, 0, -1, true, -1}); with(k, {t.n, group == 192 ? 2304 : 2112, 1032, 0, -1, false, -1});
      if (sp < 3) { with(k, {33, group == 192 ? 384 : 200, 66, 0, 16, true, 0}); with(k, {7, 8, 72, 0, 3, true, -1}); with(k, {t.n + 1, group == 192 ? 576 : 712, 520, 0, 16, true, 3}); } }
    for (int s : {0, 1}) { with({tree, 0, 1, 1, s}, {513, group == 192 ? 2112 : 2056, 520, 0, -1, true, 512}); with({tree, 0, 1, 1, s}, {300, 1152, 8324, 0, 16, true, 99}); with({tree, 0, 1, 1, s}, {700, 384, 5003, 0, -1, true, 100}); }
    for (int sp : {1, 2, 4, 8}) with({tree, 0, 0, sp, 0}, {200, ic, 328, 0, 16, true, 20});
    with({tree, 0, 1, 1, 4}, {1000, 1152, 9000, 0, -1, true, 999}); with({tree, 0, 1, 1, 4}, {513, 384, 17003, 0, 16, true, 512}); with({tree, 0, 1, 1, 4}, {260, 1152, 17920, 0, 16, false, -1});
  }
  printf("%s: %d cases, %d failures, %.1f s\n", bf ? "bf16" : "f16", n, g_failures - before, elapsed() - start); fflush(stdout);
}
static double mid(std::vector<double> v) { std::sort(v.begin(), v.end()); return v[v.size() / 2]; }
int main(int argc, char** argv) {
  CHECK(cudaMalloc(&g_ws, 256 << 20));
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check") { checks<__half>(); checks<__nv_bfloat16>(); printf("%s, %.1f s\n", g_failures ? "FAILED" : "ALL OK", elapsed()); return g_failures != 0; }
  if (what == "san") { for (int tile : {8, 5, 7, 6, 3, 0, 2}) for (int sp : {1, 2}) { if (sp == 2 && !kMediumTiles[tile].clusters(2)) continue; check<__half>("san", launch_of({1, 1, tile, sp, 0}), {kMediumTiles[tile].n + 5, 520, 136, 128, -1, true, -1}); } check<__half>("san", launch_of({1, 0, 0, 2, 0}), {133, 520, 136, 128, -1, true, -1}); printf("san: %d failures, %.1f s\n", g_failures, elapsed()); return g_failures != 0; }
  Cublas cublas; const bool have = cublas.load();
  const double limit = argc > 2 ? atof(argv[2]) : 25;
  if (what == "b" || what == "bf") {
    struct C { int ic, oc, m; std::vector<std::array<int, 4>> k; };
    const std::array<int, 4> m8 = {1, 8, 1, 0}, m82 = {1, 8, 2, 0}, m5 = {1, 5, 1, 0}, m52 = {1, 5, 2, 0}, m84w = {1, 8, 4, 2}, m7 = {1, 7, 1, 0}, ls = {0, 1, 1, 1}, lt = {0, 1, 1, 4}, l1 = {0, 1, 1, 0};
    const std::vector<C> cs = {{4096, 4096, 1024, {l1}}, {4096, 4096, 512, {m8}}, {4096, 4096, 256, {m5, m82}}, {4096, 4096, 128, {m52, {1, 8, 2, 0}, m84w}}, {4096, 4096, 96, {m52}}, {4096, 1024, 512, {m82, {0, 0, 2, 0}}}, {4096, 1024, 1024, {m8, {0, 0, 2, 0}, {0, 0, 1, 0}}}, {4096, 4096, 64, {{1, 2, 1, 0}}}, {4096, 4096, 32, {{1, 2, 2, 0}}}, {4096, 4096, 192, {m5}}, {4096, 4096, 384, {m8}},
      {14336, 4096, 512, {m8, {1, 7, 2, 0}}}, {14336, 4096, 256, {m82}}, {14336, 4096, 128, {m84w, m82}}, {14336, 4096, 32, {{1, 1, 4, 2}}}, {4096, 14336, 1024, {ls}}, {4096, 14336, 512, {ls}}, {4096, 14336, 256, {m7, l1}}, {4096, 14336, 128, {m8}}, {4096, 14336, 32, {{1, 1, 1, 0}}}, {4096, 14336, 384, {m8}},
      {8192, 28672, 128, {m7}}, {8192, 28672, 64, {{1, 6, 2, 0}, {1, 4, 1, 0}}}, {8192, 28672, 32, {{1, 3, 2, 0}}}, {8192, 28672, 256, {ls}}, {8192, 28672, 512, {ls}}, {8192, 28672, 384, {m7}}, {5120, 13824, 1024, {ls, l1}}, {5120, 13824, 2048, {ls, l1}}, {8192, 8192, 128, {m82}}, {8192, 8192, 512, {m7}}, {8192, 8192, 256, {{1, 8, 1, 0}, {1, 7, 2, 0}}}};
    int li = 0, lo = 0;
    const auto go = [&](auto zero) { using T = decltype(zero); Layer<T>* layer = nullptr;
      for (auto& c : cs) { if (elapsed() > limit) { printf("out of time\n"); break; } if (c.ic != li || c.oc != lo) { delete layer; layer = new Layer<T>(c.ic, c.oc, 128, 2048, have); li = c.ic; lo = c.oc; }
        const Int4Shape s = layer->shape(c.m); int a[4]; fi_plan(&s, a); std::vector<Kind> k = {{0, a[0], a[1], a[2], a[3]}};
        for (auto& q : c.k) for (int tree = 0; tree < 3; ++tree) { const Kind x = {tree, q[0], q[1], q[2], q[3]}; if (tree == 0 && (q == std::array<int, 4>{a[0], a[1], a[2], a[3]} || q[3] == 4)) continue; if (run(x, s, layer->params(c.m, 0), nullptr) != cudaSuccess) { cudaGetLastError(); continue; } CHECK(cudaDeviceSynchronize()); k.push_back(x); }
        std::vector<std::vector<double>> t(k.size() + 1), g(k.size() + 1);
        for (int r = 0; r < (c.m < 512 ? 9 : 5); ++r) for (size_t j = 0; j <= k.size(); ++j) { const size_t i = r % 2 ? k.size() - j : j; if (i == k.size()) t[i].push_back(layer->time_cublas(cublas, c.m, 3, 2000)); else t[i].push_back(layer->time(launch_of(k[i]), c.m, 3, 2500)); g[i].push_back(g_ghz); }
        printf("%dx%d M%-4d cuBLAS %.1f (%.2f)", c.ic, c.oc, c.m, mid(t.back()), mid(g.back())); for (size_t i = 0; i < k.size(); ++i) printf(" | %s %.2f %.3fx %+.1f%% (%.2f, cycles %+.1f%%)", name_of(k[i]).c_str(), mid(t[i]), mid(t.back()) / mid(t[i]), (mid(t[i]) / mid(t[0]) - 1) * 100, mid(g[i]), (mid(t[i]) * mid(g[i]) / (mid(t[0]) * mid(g[0])) - 1) * 100); printf("\n"); fflush(stdout); }
      delete layer; };
    if (what == "b") go(__half()); else go(__nv_bfloat16());
    printf("%.1f s\n", elapsed()); return 0;
  }
  std::vector<Kind> all;
  for (int tile = 0; tile < 9; ++tile) for (int sp : {1, 2, 4, 8}) all.push_back({1, 1, tile, sp, 0});
  for (int tile = 4; tile < 9; ++tile) for (int sp : {2, 3, 4, 5, 6, 8}) all.push_back({1, 1, tile, sp, 2});
  for (int sp : {1, 2, 4, 8}) all.push_back({1, 0, 0, sp, 0}); all.push_back({1, 0, 1, 1, 0}); all.push_back({1, 0, 1, 1, 1});
  struct L { int ic, oc; std::vector<int> ms; };
  const std::vector<L> layers = {{4096, 4096, {96, 128, 192, 256, 384, 512, 640, 768, 1024, 1536}}, {14336, 4096, {96, 128, 192, 256, 384, 512, 768, 1024}}, {4096, 14336, {96, 128, 192, 256, 384, 512, 768, 1024}}, {8192, 28672, {96, 128, 192, 256, 384, 512}}, {8192, 8192, {96, 128, 192, 256, 384, 512, 768, 1024}}, {4096, 1024, {64, 96, 128, 256, 384, 512, 1024, 2048}}, {4096, 11008, {128, 256, 512, 1024}}, {5120, 13824, {128, 256, 512, 1024}}, {4096, 6144, {64, 128, 256, 512, 1024}}, {8192, 1024, {128, 256, 512, 1024}}};
  printf("cell: expected us, plan us | fastest ones, percent against the plan's\n");
  for (auto& l : layers) {
    if (elapsed() > limit) { printf("out of time\n"); break; }
    Layer<__half> layer(l.ic, l.oc, 128, 2048, false);
    for (int m : l.ms) {
      if (elapsed() > limit) break;
      const Int4Shape s = layer.shape(m); int a[4]; fi_plan(&s, a); const Kind plan = {1, a[0], a[1], a[2], a[3]};
      const auto same = [](const Kind& x, const Kind& y) { return x.medium == y.medium && x.tile == y.tile && x.splits == y.splits && x.streamed == y.streamed; };
      std::vector<std::pair<double, Kind>> quick;
      for (const Kind& k : all) { if (!possible(k, s)) continue; if (run(k, s, layer.params(m, 0), nullptr) != cudaSuccess) { cudaGetLastError(); continue; } CHECK(cudaDeviceSynchronize()); quick.push_back({layer.time(launch_of(k), m, 1, 500), k}); }
      std::sort(quick.begin(), quick.end(), [](auto& x, auto& y) { return x.first < y.first; });
      std::vector<Kind> kinds = {plan}; for (auto& q : quick) if (!same(q.second, plan) && kinds.size() < 5 && q.first < 1.3 * quick[0].first) kinds.push_back(q.second);
      std::vector<std::vector<double>> t(kinds.size());
      for (int r = 0; r < 4; ++r) for (size_t j = 0; j < kinds.size(); ++j) { const size_t i = r % 2 ? kinds.size() - 1 - j : j; t[i].push_back(layer.time(launch_of(kinds[i]), m, 3, 1200)); }
      Int4Device d; d.sms = 132; d.clusters = true; d.workspace_bytes = int4_workspace_bytes(s.rows, s.strips * 64, s.depth_tiles); const HopperChoice c = choose_hopper(s, d);
      printf("%dx%d M%-4d %.1f %s %.1f |", l.ic, l.oc, m, c.split.ns / 1e3, name_of(plan).c_str() + 3, mid(t[0]));
      for (size_t i = 1; i < kinds.size(); ++i) printf(" %s %+.1f%%", name_of(kinds[i]).c_str() + 3, (mid(t[i]) / mid(t[0]) - 1) * 100); printf("\n"); fflush(stdout);
    }
  }
  printf("%.1f s\n", elapsed());
}
