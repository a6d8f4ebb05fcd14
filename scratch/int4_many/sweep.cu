#include "harness.cuh"
#include "int4/config.h"
#define TREE(n) extern "C" int n##_launch(int, int, int, int, const void*, const void*, cudaStream_t); extern "C" void n##_plan(const void*, int*);
TREE(fi) TREE(nw) TREE(c1) TREE(nd)
extern "C" { int g_skip_combine; }
struct Kind { int tree, medium, tile, splits, streamed; };  // streamed: 1 divided, 2 parts through the workspace
static float* g_ws;
static cudaError_t run(const Kind& k, const Int4Shape& s, Int4Params p, cudaStream_t st) {
  p.partials = g_ws; return (cudaError_t)(k.tree == 0 ? fi_launch : k.tree == 1 ? nw_launch : k.tree == 2 ? c1_launch : nd_launch)(k.medium, k.tile, k.splits, k.streamed, &s, &p, st);
}
static Launch launch_of(Kind k) { return [k](const Int4Shape& s, Int4Params p, cudaStream_t st) { return run(k, s, p, st); }; }
static std::string name_of(const Kind& k) {
  static const char* m[] = {"256x32.2", "128x32.4", "64x32.8", "448x32", "256x64", "128x64.2", "448x64", "256x128", "128x128.2"};
  static const char* l[] = {"128x128", "128x256", "128x128.2", "256x128"};
  char t[64]; snprintf(t, 64, "%s%s%s/%d%s", k.tree == 0 ? "" : k.tree == 1 ? "*" : k.tree == 2 ? "c1:" : "nodeq:", k.medium ? "m" : "L", (k.medium ? m : l)[k.tile], k.splits, k.streamed == 2 ? "w" : k.streamed ? "s" : ""); return t;
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
template <class T> void checks() {
  const int before = g_failures; int n = 0; const double start = elapsed();
  for (int group : {128, 64, 0, 192, 32}) {
    const auto with = [&](const Kind& k, Case c) { if (group == 32 && (sizeof(T) != 2 || dtype_of<T>() != DType::kF16)) return; c.group = group; if ((c.ic + 127) / 128 < k.splits) return; check<T>(name_of(k).c_str(), launch_of(k), c); ++n; };
    const int ic = group == 192 ? 1152 : 1096;
    for (int splits : {1, 2, 3, 4, 8}) for (int w : {0, 2}) { if (splits == 1 && w || splits == 3 && !w) continue; const Kind k = {1, 0, 2, splits, w};
      for (int e : {2, 3}) { const Kind k3 = {1, 0, 3, splits, w}; if (e == 3 && (splits > 1 && !w)) continue; const Kind k = e == 3 ? k3 : Kind{1, 0, 2, splits, w};
      with(k, {300, ic, 136, 0, 15, true, 20}); with(k, {129, group == 192 ? 4608 : 4160, 251, 0, -1, true, -1}); with(k, {96, group == 192 ? 4608 : 4096, 1024, 0, -1, false, -1});
      if (splits < 3) with(k, {33, group == 192 ? 384 : 200, 66, 0, 16, true, 0}); if (splits == 1) { with(k, {257, 8, 65, 0, -1, true, 3}); with(k, {512, 4608, 4096, 0, -1, true, 500}); } } }
    if (dtype_of<T>() == DType::kBF16 && group != 32) {
      for (int tile : {0, 1}) for (int s : {0, 1}) { if (s > tile) continue; with({1, 0, tile, 1, s}, {513, group == 192 ? 2112 : 2056, 520, 0, -1, true, 512}); with({1, 0, tile, 1, s}, {1000, 1152, 8320, 0, 16, true, 999}); }
      if (group == 128 || group == 0) for (int tile : {4, 5, 6, 7, 8}) { with({1, 1, tile, 1, 0}, {100, 1096, 1088, 0, -1, true, 7}); with({1, 1, tile, 1, 0}, {200, 4160, 203, 0, 16, true, -1}); }
    }
  }
  printf("%s: %d cases, %d failures, %.1f s\n", dtype_of<T>() == DType::kF16 ? "f16" : "bf16", n, g_failures - before, elapsed() - start); fflush(stdout);
}
static double mid(std::vector<double> v) { std::sort(v.begin(), v.end()); return v[v.size() / 2]; }
int main(int argc, char** argv) {
  CHECK(cudaMalloc(&g_ws, 256 << 20));
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check") { checks<__half>(); checks<__nv_bfloat16>(); printf("%s, %.1f s\n", g_failures ? "FAILED" : "ALL OK", elapsed()); return g_failures != 0; }
  Cublas cublas; const bool have = cublas.load();
  const double limit = argc > 2 ? atof(argv[2]) : 25;
  if (what == "diag") {
    struct C { int ic, oc, m; std::vector<Kind> k; };
    const Kind d1 = {1, 0, 2, 1, 0}, d2 = {1, 0, 2, 2, 0}, w1 = {1, 0, 3, 1, 0}; auto as = [](Kind k, int tree) { k.tree = tree; return k; };
    const std::vector<C> cs = {{4096, 4096, 512, {d1, as(d1, 2), as(d1, 3), {0, 0, 0, 1, 0}}}, {4096, 4096, 256, {d2, as(d2, 2), as(d2, 3)}}, {14336, 4096, 512, {d1, as(d1, 2), as(d1, 3)}}, {14336, 4096, 256, {d2, as(d2, 2), as(d2, 3)}}, {4096, 14336, 128, {d1, as(d1, 2), as(d1, 3), w1}}, {4096, 14336, 256, {w1}}, {8192, 28672, 128, {w1}}};
    int li = 0, lo = 0; Layer<__half>* layer = nullptr;
    for (auto& c : cs) { if (elapsed() > limit) break; if (c.ic != li || c.oc != lo) { delete layer; layer = new Layer<__half>(c.ic, c.oc, 128, 512, have); li = c.ic; lo = c.oc; }
      const Int4Shape s = layer->shape(c.m); int a[4]; fi_plan(&s, a); std::vector<Kind> k = {{0, a[0], a[1], a[2], a[3]}}; k.insert(k.end(), c.k.begin(), c.k.end());
      std::vector<std::vector<double>> t(k.size() + 1), g(k.size() + 1);
      for (int r = 0; r < 5; ++r) for (size_t j = 0; j <= k.size(); ++j) { const size_t i = r % 2 ? k.size() - j : j; if (i == k.size()) { t[i].push_back(layer->time_cublas(cublas, c.m, 3, 2000)); g[i].push_back(g_ghz); continue; }
        if (run(k[i], s, layer->params(c.m, 0), nullptr) != cudaSuccess) { cudaGetLastError(); t[i].push_back(-1); g[i].push_back(0); continue; } t[i].push_back(layer->time(launch_of(k[i]), c.m, 3, 1500)); g[i].push_back(g_ghz); }
      printf("%dx%d M%-4d cuBLAS %.1f us %.2f GHz", c.ic, c.oc, c.m, mid(t.back()), mid(g.back())); for (size_t i = 0; i < k.size(); ++i) printf(" | %s %.2f %.3fx %.2f", name_of(k[i]).c_str(), mid(t[i]), mid(t.back()) / mid(t[i]), mid(g[i])); printf("\n"); fflush(stdout); }
    printf("%.1f s\n", elapsed()); return 0;
  }
  std::vector<Kind> all;
  for (int tile = 4; tile < 9; ++tile) for (int sp : {1, 2, 4}) all.push_back({0, 1, tile, sp, 0});
  for (int tile = 4; tile < 9; ++tile) for (int sp : {2, 3, 4}) all.push_back({0, 1, tile, sp, 2});
  all.push_back({0, 0, 0, 1, 0}); all.push_back({0, 0, 0, 2, 0}); all.push_back({0, 0, 1, 1, 0}); all.push_back({0, 0, 1, 1, 1});
  for (int sp : {1, 2, 4}) all.push_back({1, 0, 2, sp, 0}); for (int sp : {2, 3, 4}) all.push_back({1, 0, 2, sp, 2}); for (int sp : {1, 2}) all.push_back({1, 0, 3, sp, sp == 2 ? 2 : 0});
  if (argc > 3) std::erase_if(all, [](const Kind& k) { return k.tree != 0; });
  struct L { int ic, oc; std::vector<int> ms; };
  const std::vector<L> layers = {{4096, 4096, {512, 256, 128, 1024, 384, 96, 192, 768}}, {14336, 4096, {512, 256, 128, 1024, 384, 96}}, {4096, 14336, {1024, 256, 128, 512, 384, 96}}, {8192, 28672, {256, 128, 384, 512}}, {8192, 8192, {128, 256, 512, 1024, 384}}};
  printf("cell: cuBLAS us | f16: plan us (x) | best five | new tile | bf16/f16 of the plan, old -> new dequantisation (and of the best)\n");
  for (auto& l : layers) {
    if (elapsed() > limit) { printf("out of time\n"); break; }
    Layer<__half> layer(l.ic, l.oc, 128, 1024, have); Layer<__nv_bfloat16> bf(l.ic, l.oc, 128, 1024, false);
    for (int m : l.ms) {
      if (elapsed() > limit) break;
      const Int4Shape s = layer.shape(m), sb = bf.shape(m); int a[4]; fi_plan(&s, a); const Kind plan = {0, a[0], a[1], a[2], a[3]};
      std::vector<std::pair<double, Kind>> quick;
      for (const Kind& k : all) { if (!possible(k, s)) continue; if (run(k, s, layer.params(m, 0), nullptr) != cudaSuccess) { cudaGetLastError(); continue; } CHECK(cudaDeviceSynchronize()); quick.push_back({layer.time(launch_of(k), m, 1, 600), k}); }
      std::sort(quick.begin(), quick.end(), [](auto& x, auto& y) { return x.first < y.first; });
      std::vector<Kind> kinds = {plan}; bool has_new = false;
      for (auto& q : quick) { const bool is_plan = !q.second.tree && q.second.medium == plan.medium && q.second.tile == plan.tile && q.second.splits == plan.splits && q.second.streamed == plan.streamed; if (is_plan) continue; if (kinds.size() < 5 || (q.second.tree && !has_new)) { kinds.push_back(q.second); has_new |= q.second.tree != 0; } }
      std::vector<double> tc; std::vector<std::vector<double>> t(kinds.size()), b(kinds.size()); std::vector<double> bn;
      Kind pn = plan; pn.tree = 1;
      for (int r = 0; r < 3; ++r) { tc.push_back(have ? layer.time_cublas(cublas, m, 3, 2000) : 0);
        for (size_t i = 0; i < kinds.size(); ++i) t[i].push_back(layer.time(launch_of(kinds[i]), m, 3, 1500));
        for (size_t i = 0; i < kinds.size(); ++i) if (i == 0 || kinds[i].tree) b[i].push_back(bf.time(launch_of(kinds[i]), m, 3, 1500));
        if (run(pn, sb, bf.params(m, 0), nullptr) == cudaSuccess) bn.push_back(bf.time(launch_of(pn), m, 3, 1500)); cudaGetLastError(); }
      const double c = mid(tc), p0 = mid(t[0]);
      printf("%dx%d M%-4d cuBLAS %.1f | %s %.1f %.2fx |", l.ic, l.oc, m, c, name_of(plan).c_str(), p0, c / p0);
      for (size_t i = 1; i < kinds.size(); ++i) { printf(" %s %.1f %.2fx", name_of(kinds[i]).c_str(), mid(t[i]), c / mid(t[i])); if (kinds[i].tree) printf(" (bf %+.1f%%)", (mid(b[i]) / mid(t[i]) - 1) * 100); }
      printf(" | bf old %+.1f%%", (mid(b[0]) / p0 - 1) * 100); if (!bn.empty()) printf(" new %+.1f%%", (mid(bn) / p0 - 1) * 100); printf("\n"); fflush(stdout);
    }
  }
  printf("%.1f s\n", elapsed());
}
