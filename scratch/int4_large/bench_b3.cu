#include "harness.cuh"
#define TREE(n) extern "C" int n##_launch(int, int, int, int, const void*, const void*, cudaStream_t);
TREE(old) TREE(new) TREE(alt) 
extern "C" void old_plan(const void*, int*);
struct Kind { int tree, medium, tile, splits, streamed; };
extern "C" { int g_skip_combine; }
static float* g_ws;
static cudaError_t run(const Kind& k, const Int4Shape& s, Int4Params p, cudaStream_t st) {
  p.partials = g_ws;
  static decltype(&old_launch) f[] = {old_launch, new_launch, alt_launch};
  return (cudaError_t)f[k.tree](k.medium, k.tile, k.splits, k.streamed, &s, &p, st);
}
static Launch launch_of(Kind k) { return [k](const Int4Shape& s, Int4Params p, cudaStream_t st) { return run(k, s, p, st); }; }
static const std::pair<int, int> kLayers[] = {{8192, 28672}, {4096, 4096}, {14336, 4096}, {4096, 14336}};
static const int n_of[] = {32, 32, 32, 32, 64, 64, 64, 128, 128}, ch_of[] = {256, 128, 64, 448, 256, 128, 448, 256, 128};
static std::string name_of(const Kind& k) {
  static const char* tree[] = {"old ", "", "alt ", "ns ", "rt "};
  static const char* m[] = {"256x32.2", "128x32.4", "64x32.8", "448x32", "256x64", "128x64.2", "448x64", "256x128", "128x128.2"};
  static const char* l[] = {"128x128", "128x256"};
  char t[64]; snprintf(t, 64, "%s%s%s/%d%s", tree[k.tree], k.medium ? "m" : "L", (k.medium ? m : l)[k.tile], k.splits, k.streamed == 2 ? "w" : k.streamed ? "s" : ""); return t;
}
__global__ void probe(long long* out) {
  unsigned long long a, b; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(a)); long long c = clock64();
  do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(b)); while (b - a < 40000);
  out[0] = b - a; out[1] = clock64() - c;
}
// us a launch and MHz right after, after `ms` of it.
static std::pair<double, double> sustained(const std::function<void(int, cudaStream_t)>& body, double guess_us, double ms) {
  cudaStream_t s; CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking)); cudaGraph_t g; cudaGraphExec_t x;
  const int count = 6, rounds = std::max(2, (int)(ms * 1000 / guess_us / count));
  CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal)); for (int i = 0; i < count; ++i) body(i, s); CHECK(cudaStreamEndCapture(s, &g)); CHECK(cudaGraphInstantiate(&x, g, 0));
  cudaEvent_t a, b; CHECK(cudaEventCreate(&a)); CHECK(cudaEventCreate(&b)); static long long* out = device_alloc<long long>(2);
  for (int i = 0; i < rounds / 2; ++i) CHECK(cudaGraphLaunch(x, s));
  CHECK(cudaEventRecord(a, s)); for (int i = 0; i < rounds; ++i) CHECK(cudaGraphLaunch(x, s)); CHECK(cudaEventRecord(b, s));
  probe<<<1, 1, 0, s>>>(out); CHECK(cudaStreamSynchronize(s));
  float t; CHECK(cudaEventElapsedTime(&t, a, b)); long long h[2]; CHECK(cudaMemcpy(h, out, 16, cudaMemcpyDeviceToHost));
  cudaGraphExecDestroy(x); cudaGraphDestroy(g); cudaStreamDestroy(s);
  return {t * 1e3 / rounds / count, 1e3 * h[1] / h[0]};
}
int main(int argc, char** argv) {
  CHECK(cudaMalloc(&g_ws, 64 << 20));
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check") {
    int n = 0;
    for (int streamed : {0, 1}) for (Case c : {Case{129, 712, 251, 128, -1, true, 7}, Case{256, 4096, 1088, 128, -1, false, -1}, Case{300, 1096, 136, 64, 15, true, 20}, Case{513, 2056, 520, 128, 16, false, 512}, Case{1000, 1024, 8320, 128, -1, true, 999}, Case{257, 8, 65, 64, -1, true, 3}, Case{2100, 200, 5000, 0, -1, true, 100}, Case{40, 4096, 17000, 128, -1, true, -1}}) { check<__half>(streamed ? "streamed" : "whole", launch_of({1, 0, 1, 1, streamed}), c, nullptr, false); ++n; }
    for (int splits : {1, 2, 4, 8}) for (Case c : {Case{300, 1096, 136, 64, 15, true, 20}, Case{129, 4096, 251, 128, 15, true, -1}}) { check<__half>("L128x128", launch_of({1, 0, 0, splits, 0}), c); ++n; }
    for (int tree : {1, 2}) for (int tile = 0; tile < 9; ++tile) for (int splits : {1, 2, 4}) for (int w : {0, 2}) {
      if ((tile == 7 && splits > 1 && !w) || (splits == 1 && w) || tree == 2) continue;
      for (Case c : {Case{100, 1096, 203, 128, -1, true, 20}, Case{128, 4160, 1088, 128, -1, true, -1}, Case{33, 72, 130, 64, 16, false, 0}, Case{17, 200, 64, 0, 3, true, 0}, Case{65, 12288, 512, 128, -1, true, 64}}) { if ((c.ic + 127) / 128 < splits) continue; check<__half>(name_of({tree, 1, tile, splits, w}).c_str(), launch_of({tree, 1, tile, splits, w}), c); ++n; }
    }
    printf("%d cases, %d failures, %.1f s\n", n, g_failures, elapsed());
    return 0;
  }
  if (what == "one") {  // one M ic oc tree medium tile splits streamed
    int v[9]; for (int i = 0; i < 8; ++i) v[i] = atoi(argv[2 + i]);
    Layer<__half> layer(v[1], v[2], 128, v[0], false);
    for (int i = 0; i < 3; ++i) CHECK(run({v[3], v[4], v[5], v[6], v[7]}, layer.shape(v[0]), layer.params(v[0], i), nullptr));
    CHECK(cudaDeviceSynchronize()); return 0;
  }
  Cublas cublas; const bool have = cublas.load();
  if (what == "medium") {
    for (auto [ic, oc] : kLayers) {
      Layer<__half> layer(ic, oc, 128, 512, have);
      printf("== %d x %d\n", ic, oc);
      for (int m : {32, 64, 128, 256, 512}) {
        int best[4]; Int4Shape s = layer.shape(m); old_plan(&s, best);
        std::vector<Kind> kinds = {{0, best[0], best[1], best[2], 0}};
        for (int tile = 0; tile < 9; ++tile) for (int splits : {1, 2, 3, 4, 5, 6, 7, 8}) for (int w : {0, 2}) {
          const int blocks = (m + n_of[tile] - 1) / n_of[tile], ctas = blocks * ((oc + ch_of[tile] - 1) / ch_of[tile]) * splits;
          if (blocks > 4 || n_of[tile] >= 2 * m || (ctas > 132 && splits > 1) || ctas < 88 || (w && (splits == 1 || m > 256)) || (!w && (splits & (splits - 1))) || (tile == 7 && !w && splits > 1)) continue;
          if (!w && splits >= 4 && ctas > 120) continue;
          kinds.push_back({1, 1, tile, splits, w});
          if (false) kinds.push_back({2, 1, tile, splits, w});
        }
        if (m >= 256) for (int st : {0, 1}) kinds.push_back({1, 0, 1, 1, st});
        if (m >= 256) for (int sp : {1, 2}) kinds.push_back({1, 0, 0, sp, 0});
        std::vector<std::vector<double>> t(kinds.size() + 1);
        for (auto& k : kinds) CHECK(run(k, s, layer.params(m, 0), nullptr));
        CHECK(cudaDeviceSynchronize());
        for (int r = 0; r < 3; ++r) { t.back().push_back(have ? layer.time_cublas(cublas, m, 3, 1500) : 0); for (size_t i = 0; i < kinds.size(); ++i) t[i].push_back(layer.time(launch_of(kinds[i]), m, 3, 1000)); }
        for (auto& v : t) std::sort(v.begin(), v.end());
        std::vector<size_t> order; for (size_t i = 1; i < kinds.size(); ++i) order.push_back(i);
        std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return t[a][1] < t[b][1]; });
        printf("M %d cuBLAS %.2f | %s %.2f (%.2fx) |", m, t.back()[1], name_of(kinds[0]).c_str(), t[0][1], t.back()[1] / t[0][1]);
        for (size_t i = 0; i < order.size() && i < 14; ++i) printf(" %s %.2f", name_of(kinds[order[i]]).c_str(), t[order[i]][1]);
        printf("\n"); fflush(stdout);
      }
    }
    printf("%.1f s\n", elapsed()); return 0;
  }
  if (what == "power") {
    for (auto [ic, oc] : {std::pair<int, int>{4096, 14336}, {8192, 28672}, {14336, 4096}, {4096, 4096}}) {
      Layer<__half> layer(ic, oc, 128, 4096, have);
      printf("== %d x %d\n", ic, oc);
      for (int m : {256, 512, 1024, 2048, 4096}) {
        const Int4Shape s = layer.shape(m);
        const double guess = 2.0 * m * ic * oc / 6e8; const double ms = 25;
        printf("M %d", m);
        for (int again = 0; again < 2; ++again) {
          if (have) { auto r = sustained([&](int i, cudaStream_t st) { cublas.run(layer.x, layer.dense + (int64_t)(i % layer.dense_copies) * ic * oc, layer.out2, m, ic, oc, st, true); }, guess, ms); printf(" | cuBLAS %.1f @%.0f", r.first, r.second); }
          for (Kind k : {Kind{0, 0, 1, 1, 0}, Kind{2, 0, 1, 1, 0}, Kind{2, 0, 1, 1, 1}, Kind{1, 0, 1, 1, 0}, Kind{1, 0, 1, 1, 1}}) {
            CHECK(run(k, s, layer.params(m, 0), nullptr));
            auto r = sustained([&](int i, cudaStream_t st) { CHECK(run(k, s, layer.params(m, i % layer.copies), st)); }, guess, ms); printf(" %s%s %.1f @%.0f", name_of(k).c_str(), k.streamed == 3 ? "-" : "", r.first, r.second);
          }
        }
        printf("\n"); fflush(stdout);
      }
    }
    printf("%.1f s\n", elapsed()); return 0;
  }
}
