#include "harness.cuh"
#include <unistd.h>
#define VARIANTS V(fin) V(me) V(u1) V(e0) V(s1) V(s2) V(ew)
#ifdef LIST
#undef VARIANTS
#define VARIANTS LIST
#endif
// weak clock: me and fin have none
#define V(n) extern "C" int n##_launch(int, int, int, int, const void*, const void*, cudaStream_t); extern "C" __attribute__((weak)) void n##_clock(double*);
VARIANTS
#undef V
extern "C" void fin_plan(const void*, int*);
extern "C" { int g_skip_combine; }
struct Variant { const char* name; decltype(&fin_launch) launch; decltype(&fin_clock) clock; };
#define V(n) {#n, n##_launch, n##_clock},
static const Variant kV[] = {VARIANTS};
#undef V
static const int N = sizeof(kV) / sizeof(kV[0]);
static float* g_ws;
struct Kind { int v, medium, tile, splits, streamed; };
static Launch launch_of(Kind k) { return [k](const Int4Shape& s, Int4Params p, cudaStream_t st) { p.partials = g_ws; return (cudaError_t)kV[k.v].launch(k.medium, k.tile, k.splits, k.streamed, &s, &p, st); }; }
static std::string name_of(const Kind& k) {
  static const char* m[] = {"256x32.2", "128x32.4", "64x32.8", "448x32", "256x64", "128x64.2", "448x64", "256x128", "128x128.2"}; static const char* l[] = {"128x128", "128x256"};
  char t[64]; snprintf(t, 64, "%s:%s%s/%d%s", kV[k.v].name, k.medium ? "m" : "L", (k.medium ? m : l)[k.tile], k.splits, k.streamed == 2 ? "w" : k.streamed ? "s" : ""); return t;
}
// us a launch, after `ms` of it, over `ms`.
static double sustained(const std::function<void(int, cudaStream_t)>& body, double guess_us, double ms) {
  cudaStream_t s; CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking)); cudaGraph_t g; cudaGraphExec_t x;
  const int count = std::max(6, std::min(60, (int)(1500 / guess_us))), rounds = std::max(2, (int)(ms * 1000 / guess_us / count));
  CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal)); for (int i = 0; i < count; ++i) body(i, s); CHECK(cudaStreamEndCapture(s, &g)); CHECK(cudaGraphInstantiate(&x, g, 0));
  cudaEvent_t a, b; CHECK(cudaEventCreate(&a)); CHECK(cudaEventCreate(&b));
  for (int i = 0; i < rounds; ++i) CHECK(cudaGraphLaunch(x, s));
  CHECK(cudaEventRecord(a, s)); for (int i = 0; i < rounds; ++i) CHECK(cudaGraphLaunch(x, s)); CHECK(cudaEventRecord(b, s)); CHECK(cudaStreamSynchronize(s));
  float t; CHECK(cudaEventElapsedTime(&t, a, b)); cudaGraphExecDestroy(x); cudaGraphDestroy(g); cudaStreamDestroy(s); cudaEventDestroy(a); cudaEventDestroy(b);
  return t * 1e3 / rounds / count;
}
#ifndef SMALL_CASES
#define SMALL_CASES
#endif
int main(int argc, char** argv) {
  CHECK(cudaMalloc(&g_ws, 64 << 20));
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check") {
    int n = 0; const int reps = argc > 2 ? atoi(argv[2]) : 1;
    for (int rep = 0; rep < reps; ++rep) for (int v = 1; v < N; ++v) for (int medium : {0, 1}) for (int tile = 0; tile < 9; ++tile) for (int streamed : {0, 1, 2}) for (int splits : {1, 2, 3, 4}) {
      if (kV[v].name[0] == 's' || !strcmp(kV[v].name, "ew") || (splits > 2 && streamed != 2) || (streamed == 2 && (!medium || splits == 1))) continue;
      if ((splits > 1 && streamed != 2 && (streamed || (!medium && tile == 1) || (medium && tile == 7))) || (medium ? streamed == 1 : tile > 1)) continue;
      const Kind k = {v, medium, tile, splits, streamed};
      for (Case c : {Case{129, 712, 251, 128, -1, true, 7}, Case{256, 4096, 1088, 128, -1, false, -1}, Case{513, 2056, 520, 128, 16, false, 512}, Case{1000, 1024, 8320, 128, -1, true, 999}, Case{257, 8, 65, 128, -1, true, 3}, Case{2100, 200, 5000, 128, -1, true, 100}, Case{40, 4096, 17000, 128, -1, true, -1}}) {
        if ((c.ic + 63) / 64 < 2 * splits && splits > 1) continue;
        static float* probe = device_alloc<float>(1 << 20);
        Int4Shape e = {}; e.dtype = DType::kF16; e.group_size = 128; e.depth_tiles = 4; e.rows = 1; e.strips = 1; e.columns = 256; e.channels = 64; Int4Params q = {}; q.x = probe; q.packed = (uint8_t*)probe; q.scales = probe; q.zeros = (uint8_t*)probe; q.out = probe + 65536;
        if (launch_of(k)(e, q, nullptr)) { cudaGetLastError(); CHECK(cudaDeviceSynchronize()); break; }
        CHECK(cudaDeviceSynchronize());
        check<__half>(name_of(k).c_str(), launch_of(k), c); ++n; }
    }
    printf("%d cases, %d failures, %.1f s\n", n, g_failures, elapsed()); return 0;
  }
  Cublas cublas; const bool have = cublas.load();
  if (what == "data") {  // cycles of a tile of the depth with random and with equal weights
    for (int zero : {0, 1}) for (int m : {512, 1024}) { Layer<__half> layer(4096, 4096, 128, 1024, false);
      if (zero) CHECK(cudaMemset(layer.packed, 0x77, layer.packed_bytes * layer.copies));
      printf("%s weights, M %d:", zero ? "equal" : "random", m);
      for (int v = 0; v < N; ++v) { if (!kV[v].clock) continue; const Kind k = {v, 0, m == 1024, 1, 0}; double d; kV[v].clock(&d); for (int r = 0; r < 2; ++r) { kV[v].clock(&d); for (int i = 0; i < 12; ++i) CHECK(launch_of(k)(layer.shape(m), layer.params(m, i % layer.copies), nullptr)); CHECK(cudaDeviceSynchronize()); } kV[v].clock(&d); printf(" %s %.0f", name_of(k).c_str(), d); }
      printf("\n"); }
    return 0;
  }
  if (what == "one") {  // M ic oc variant medium tile splits streamed
    int a[8]; for (int i = 0; i < 8; ++i) a[i] = atoi(argv[2 + i]);
    Layer<__half> layer(a[1], a[2], 128, a[0], false);
    for (int i = 0; i < 3; ++i) CHECK(launch_of({a[3], a[4], a[5], a[6], a[7]})(layer.shape(a[0]), layer.params(a[0], i), nullptr));
    CHECK(cudaDeviceSynchronize()); return 0;
  }
  if (what == "list") {  // for ncu
    for (auto [ic, oc] : {std::pair<int, int>{4096, 4096}, {4096, 14336}, {14336, 4096}, {8192, 28672}}) { Layer<__half> layer(ic, oc, 128, 4096, have);
      for (int m : {128, 256, 512, 1024, 4096}) { if (m == 4096 && oc != 14336) continue; const Int4Shape s = layer.shape(m); int b[4]; fin_plan(&s, b);
        cublas.run(layer.x, layer.dense, layer.out2, m, ic, oc, nullptr, true); CHECK(launch_of({0, b[0], b[1], b[2], b[3]})(s, layer.params(m, 0), nullptr)); CHECK(cudaDeviceSynchronize()); } }
    return 0;
  }
  struct P { int ic, oc, m; std::vector<std::array<int, 4>> plans; };  // medium, tile, splits, streamed
  const std::vector<P> cells =
#ifdef CELLS
  CELLS;
#else
  {{4096, 4096, 512, {{0, 0, 1, 0}, {1, 8, 1, 0}}}, {4096, 4096, 384, {{1, 8, 1, 0}}}, {4096, 4096, 256, {{1, 8, 2, 0}, {1, 5, 1, 0}}}, {4096, 4096, 128, {{1, 5, 2, 0}, {1, 8, 4, 2}, {1, 8, 3, 2}}},
   {4096, 14336, 128, {{1, 8, 1, 0}}}, {4096, 14336, 256, {{1, 7, 1, 0}, {0, 1, 1, 0}}}, {4096, 14336, 512, {{1, 7, 1, 0}, {0, 1, 1, 1}}},
   {14336, 4096, 128, {{1, 8, 4, 2}}}, {14336, 4096, 256, {{1, 8, 2, 0}}}, {14336, 4096, 512, {{1, 8, 1, 0}}}, {8192, 28672, 128, {{1, 7, 1, 0}}}, {8192, 28672, 256, {{0, 1, 1, 1}}}};
#endif
  std::pair<int, int> now_layer = {0, 0}; Layer<__half>* layer = nullptr;
  const double ms = argc > 2 ? atof(argv[2]) : 20, limit = argc > 3 ? atof(argv[3]) : 40;
  for (const P& c : cells) {
    if (elapsed() > limit) { printf("out of time\n"); break; }
    if (now_layer != std::pair(c.ic, c.oc)) { delete layer; layer = new Layer<__half>(c.ic, c.oc, 128, 4096, have); now_layer = {c.ic, c.oc}; }
    const Int4Shape s = layer->shape(c.m); int b[4]; fin_plan(&s, b);
    std::vector<Kind> kinds = {{0, b[0], b[1], b[2], b[3]}};
    for (auto& pl : c.plans) for (int v = 1; v < N; ++v) { const Kind k = {v, pl[0], pl[1], pl[2], pl[3]}; if (launch_of(k)(s, layer->params(c.m, 0), nullptr) == cudaSuccess) kinds.push_back(k); CHECK(cudaDeviceSynchronize()); }
    std::vector<std::vector<double>> t(kinds.size() + 1); std::vector<double> cy(kinds.size());
    std::vector<bool> ok(kinds.size());
    for (size_t i = 0; i < kinds.size(); ++i) { ok[i] = launch_of(kinds[i])(s, layer->params(c.m, 0), nullptr) == cudaSuccess; CHECK(cudaDeviceSynchronize()); cudaGetLastError(); }
    const double guess = std::max(8.0, 2.0 * c.m * c.ic * c.oc / 6e8);
    for (int r = 0; r < 3; ++r) for (size_t j = 0; j <= kinds.size(); ++j) {
      const size_t i = (r == 1 ? kinds.size() - j : (j + r * 2) % (kinds.size() + 1));
      if (i == kinds.size()) { t[i].push_back(sustained([&](int i, cudaStream_t st) { cublas.run(layer->x, layer->dense + (int64_t)(i % layer->dense_copies) * c.ic * c.oc, layer->out2, c.m, c.ic, c.oc, st, true); }, guess, ms)); continue; }
      if (!ok[i]) { t[i].push_back(-1); continue; }
      double d; if (kV[kinds[i].v].clock) kV[kinds[i].v].clock(&d);
      t[i].push_back(sustained([&](int k, cudaStream_t st) { CHECK(launch_of(kinds[i])(s, layer->params(c.m, k % layer->copies), st)); }, guess, ms));
      if (kV[kinds[i].v].clock) { kV[kinds[i].v].clock(&d); cy[i] = d; }
    }
    for (auto& v : t) std::sort(v.begin(), v.end());
    printf("%d x %d M %d cuBLAS %.1f |", c.ic, c.oc, c.m, t.back()[1]);
    for (size_t i = 0; i < kinds.size(); ++i) printf(" %s %.1f (%.3fx, %.0f)", name_of(kinds[i]).c_str(), t[i][1], t.back()[1] / t[i][1], cy[i]);
    printf("\n"); fflush(stdout);
  }
  printf("%.1f s\n", elapsed());
}
