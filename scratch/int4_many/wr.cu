#include "harness.cuh"
#include "int4/config.h"
#define TREE(n) extern "C" int n##_launch(int, int, int, int, const void*, const void*, cudaStream_t); extern "C" void n##_plan(const void*, int*);
TREE(fi) TREE(wr)
extern "C" { int g_skip_combine; }
static float* g_ws;
static decltype(&fi_launch) const kLaunch[] = {fi_launch, wr_launch};
static double mid(std::vector<double> v) { std::sort(v.begin(), v.end()); return v[v.size() / 2]; }
struct Kind { int tree, a[4]; };
static Launch L(Kind k) { return [=](const Int4Shape& s, Int4Params p, cudaStream_t st) { p.partials = g_ws; return (cudaError_t)kLaunch[k.tree](k.a[0], k.a[1], k.a[2], k.a[3], &s, &p, st); }; }
static std::string name(const Kind& k) { auto& t = k.a[0] ? kMediumTiles[k.a[1]] : kLargeTiles[k.a[1]]; char n[64]; snprintf(n, 64, "%s%dx%d.%d/%d%s", k.a[0] ? "m" : "L", t.channels(), t.n, t.depth_groups, k.a[2], k.a[3] == 2 ? "w" : k.a[3] ? "s" : ""); return n; }
template <class T> void checks() {
  int n = 0; const bool f16 = dtype_of<T>() == DType::kF16; const double start = elapsed();
  for (int tile : {8, 7, 5, 6, 4, 3, 9, 0, 1, 2}) for (int group : {128, 64, 0, 32}) for (int sp : {1, 2, 4, 3}) for (int w : {0, 2}) {
    const auto& t = kMediumTiles[tile]; if (w && sp == 1 || sp == 3 && !w || !w && sp > 1 && !t.clusters(sp) || elapsed() - start > 30) continue;
    char nm[64]; snprintf(nm, 64, "%s g%d", name({1, {1, tile, sp, w}}).c_str(), group);
    const auto go = [&](Case c) { c.group = group; if ((c.ic + 127) / 128 < sp) return; check<T>(nm, L({1, {1, tile, sp, w}}), c); ++n; };
    go({t.n + 1, 1096, 520, 0, -1, true, t.n - 2}); go({2 * t.n - 3, 2112, 251, 0, -1, true, -1}); go({t.n, 1280, 1032, 0, -1, false, -1}); go({t.n + t.n / 2, 712, 520, 0, 16, true, 3}); go({7, 200, 72, 0, 15, true, 0}); }
  for (int tile : {1, 0}) for (int group : {128, 64, 0, 32}) for (int sp : {1, 2}) for (int mode : {0, 1}) { if (mode && (tile == 0 || sp > 1) || tile == 1 && sp > 1) continue;
    char nm[64]; snprintf(nm, 64, "large %s g%d", name({1, {0, tile, sp, mode}}).c_str(), group);
    const auto go = [&](Case c) { c.group = group; check<T>(nm, L({1, {0, tile, sp, mode}}), c); ++n; };
    if (tile == 1) { go({257, 1152, 8324, 0, -1, true, 100}); go({300, 2056, 8320, 0, -1, true, 255}); go({513, 384, 17003, 0, 16, true, 512}); go({1025, 640, 5000, 0, -1, false, 900}); go({511, 712, 9000, 0, -1, true, 3}); go({130, 384, 5003, 0, -1, true, 100}); }
    else { go({129, 1096, 328, 0, 16, true, 20}); go({300, 712, 520, 0, -1, true, 255}); go({100, 384, 130, 0, -1, true, -1}); } }
  printf("%s: %d cases, %d failures, %.1f s\n", f16 ? "f16" : "bf16", n, g_failures, elapsed()); fflush(stdout);
}
int main(int argc, char** argv) {
  CHECK(cudaMalloc(&g_ws, 128 << 20));
  if (argc > 1 && std::string(argv[1]) == "check") { checks<__half>(); checks<__nv_bfloat16>(); printf("%s\n", g_failures ? "FAILED" : "ALL OK"); return 0; }
  if (argc > 1 && std::string(argv[1]) == "san") { for (int tile : {3, 9}) for (int sp : {1, 2}) { check<__half>("san", L({1, {1, tile, sp, 0}}), {13, 1300, 520, 128, -1, true, -1}); check<__nv_bfloat16>("san", L({1, {1, tile, sp, 0}}), {35, 2100, 460, 128, -1, true, -1}); } printf("san: %d failures\n", g_failures); return 0; }
  Cublas cublas; const bool have = cublas.load();
  struct C { int ic, oc, m; }; int li = 0, lo = 0; Layer<__half>* layer = nullptr;
  for (C c : std::vector<C>{{4096, 4096, 129}, {4096, 4096, 160}, {4096, 4096, 191}, {4096, 4096, 257}, {4096, 4096, 300}, {4096, 14336, 257}, {4096, 14336, 300}, {14336, 4096, 129}, {14336, 4096, 160}, {4096, 1024, 257}, {5120, 13824, 257}, {5120, 13824, 300}, {4096, 14336, 1040}, {4096, 14336, 1100}, {4096, 4096, 1040}, {8192, 28672, 260}, {8192, 28672, 32}, {8192, 28672, 16}}) {
    if (elapsed() > 11) { printf("out of time\n"); break; }
    if (c.ic != li || c.oc != lo) { delete layer; layer = new Layer<__half>(c.ic, c.oc, 128, 1100, have); li = c.ic; lo = c.oc; }
    const Int4Shape s = layer->shape(c.m); Kind k[2]; for (int i = 0; i < 2; ++i) { k[i].tree = i; (i ? wr_plan : fi_plan)(&s, k[i].a); }
    std::vector<double> t[3]; for (int r = 0; r < 5; ++r) for (int j = 0; j < 3; ++j) { const int i = r % 2 ? 2 - j : j; t[i].push_back(i == 2 ? (have ? layer->time_cublas(cublas, c.m, 3, 1000) : 0) : layer->time(L(k[i]), c.m, 3, 800)); }
    printf("%dx%d M%d cuBLAS %.1f | before %s %.2f %.2fx | %s %.2f %.2fx %+.1f%%\n", c.ic, c.oc, c.m, mid(t[2]), name(k[0]).c_str(), mid(t[0]), mid(t[2]) / mid(t[0]), name(k[1]).c_str(), mid(t[1]), mid(t[2]) / mid(t[1]), (mid(t[1]) / mid(t[0]) - 1) * 100); fflush(stdout);
  }
  printf("%.1f s\n", elapsed());
}
