#include "harness.cuh"
// V(name, right, streamed): variants to link
#define VARIANTS V(v0, 1) V(v6, 1) V(v7, 1) V(v8, 1) V(w0, 1) V(w6, 1) V(w7, 1) V(w8, 1) V(v1, 0) V(v2, 0) V(v3, 0) V(v4, 0) V(v5, 0)
#ifdef VARIANTS_FILE
#include VARIANTS_FILE
#endif
#define V(n, r) extern "C" int n##_launch(int, int, int, int, const void*, const void*, cudaStream_t); extern "C" void n##_clock(double*);
VARIANTS
#undef V
struct Variant { const char* name; int right; decltype(&v0_launch) launch; decltype(&v0_clock) clock; };
#define V(n, r) {#n, r, n##_launch, n##_clock},
static const Variant kV[] = {VARIANTS};
#undef V
static float* g_ws;
static Launch launch_of(const Variant& v, int streamed, int tile = 1) { return [&v, streamed, tile](const Int4Shape& s, Int4Params p, cudaStream_t st) { p.partials = g_ws; return (cudaError_t)v.launch(0, tile, 1, streamed, &s, &p, st); }; }
int main(int argc, char** argv) {
  CHECK(cudaMalloc(&g_ws, 64 << 20));
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check") {
    int n = 0;
    for (auto& v : kV) if (v.right) for (int streamed : {0, 1, 2}) for (Case c : {Case{129, 712, 251, 128, -1, true, 7}, Case{256, 4096, 1088, 128, -1, false, -1}, Case{300, 1096, 136, 64, 15, true, 20}, Case{513, 2056, 520, 128, 16, false, 512}, Case{1000, 1024, 8320, 128, -1, true, 999}, Case{257, 8, 65, 64, -1, true, 3}, Case{2100, 200, 5000, 0, -1, true, 100}, Case{40, 4096, 17000, 128, -1, true, -1}}) { check<__half>((std::string(v.name) + (streamed == 2 ? "t0" : streamed ? "s" : "")).c_str(), launch_of(v, streamed % 2, streamed != 2), c); ++n; }
    printf("%d cases, %d failures, %.1f s\n", n, g_failures, elapsed()); return 0;
  }
  Cublas cublas; const bool have = cublas.load();
  struct P { int ic, oc, streamed, tile; std::vector<int> m; };
  for (const P& l : {P{14336, 4096, 0, 1, {1024}}, P{4096, 4096, 0, 0, {512}}, P{4096, 4096, 0, 1, {1024, 4096}}, P{4096, 14336, 1, 1, {1024, 4096}}, P{4096, 14336, 0, 0, {128}}, P{14336, 4096, 0, 0, {512}}, P{8192, 28672, 1, 1, {512, 1024}}}) {
    Layer<__half> layer(l.ic, l.oc, 128, 4096, have);
    for (int m : l.m) {
      const int N = sizeof(kV) / sizeof(kV[0]); std::vector<std::vector<double>> t(N + 1), c(N);
      for (int i = 0; i < N; ++i) { CHECK(launch_of(kV[i], l.streamed, l.tile)(layer.shape(m), layer.params(m, 0), nullptr)); double d; CHECK(cudaDeviceSynchronize()); kV[i].clock(&d); }
      for (int r = 0; r < 3; ++r) { t[N].push_back(have ? layer.time_cublas(cublas, m, 3, 1500) : 0);
        for (int i = 0; i < N; ++i) { t[i].push_back(layer.time(launch_of(kV[i], l.streamed, l.tile), m, 3, 1500)); double d; kV[i].clock(&d); c[i].push_back(d); } }
      for (auto& v : t) std::sort(v.begin(), v.end()); for (auto& v : c) std::sort(v.begin(), v.end());
      printf("%d x %d M %d%s N %d cuBLAS %.1f |", l.ic, l.oc, m, l.streamed ? "s" : "", l.tile ? 256 : 128, t[N][1]);
      for (int i = 0; i < N; ++i) printf(" %s %.1f (%.3fx, %.0f)", kV[i].name, t[i][1], t[N][1] / t[i][1], c[i][1]);
      printf("\n"); fflush(stdout);
    }
  }
  printf("%.1f s\n", elapsed());
}
