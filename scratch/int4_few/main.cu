// check | sweep f16|bf16 shape-set M.. | line
#include "harness.cuh"
#include "entry.cuh"
#include "int4/hopper_params.h"
#include "common/tensor_map.h"
#include "list.inc"
static double g_budget = 40;
static float* g_ws;
struct Plan { const Entry* e; int splits; 
  std::string name() const { char t[96]; if (e->medium) snprintf(t, 96, "m%dx%d.%d s%d v%d/%d", e->channels, e->rows, e->b, e->stages, e->v, splits); else snprintf(t, 96, "%dx%d.%dx%d%s v%d/%d", e->a, e->b, e->stages, e->ctas, e->units == 2 ? "h" : "", e->v, splits); return t; } };
static cudaError_t run(const Int4Shape& s, const Plan& plan, Int4Params p, cudaStream_t stream) {
  const Entry& e = *plan.e;
  cudaError_t err = cudaFuncSetAttribute(e.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, e.shared_bytes);
  if (err != cudaSuccess) return err;
  p.set_splits(plan.splits, (s.depth_tiles + 1) / 2); p.partials = nullptr;
  cudaLaunchAttribute a; a.id = cudaLaunchAttributeClusterDimension; a.val.clusterDim.x = plan.splits; a.val.clusterDim.y = a.val.clusterDim.z = 1;
  cudaLaunchConfig_t l = {}; const unsigned cb = (s.strips * 64 + e.channels - 1) / e.channels, rb = (p.rows + e.rows - 1) / e.rows;
  l.gridDim = e.medium ? dim3(plan.splits, rb, cb) : dim3(plan.splits, cb, rb);
  l.blockDim = e.threads; l.dynamicSmemBytes = e.shared_bytes; l.stream = stream; l.attrs = &a; l.numAttrs = plan.splits > 1;
  if (e.medium) {
    HopperParams h = {}; h.problem = p;
    if ((err = encode_tensor_map(s.dtype, p.x, 1, s.rows, 1, s.columns, e.rows, kDepth, &h.x)) != cudaSuccess) return err;
    h.row_blocks = rb; h.channel_blocks = cb;
    void* args[] = {&h};
    return cudaLaunchKernelExC(&l, e.kernel, args);
  }
  void* args[] = {&p};
  return cudaLaunchKernelExC(&l, e.kernel, args);
}
static bool fits(const Entry& e, const Int4Shape& s, bool all, int splits) {
  const int ctas = (s.strips * 64 + e.channels - 1) / e.channels * ((s.rows + e.rows - 1) / e.rows);
  if (splits > (s.depth_tiles + 1) / 2) return false;
  if (e.medium) return s.rows > e.rows / 2 && (all || s.rows <= e.rows) && (splits == 1 || e.rows / 8 % splits == 0) && (e.b + 1) * e.channels * e.rows * 4 * (splits > 1) <= kMostExchangeBytes && (all || (ctas * splits >= 88 && ctas * splits <= 132));
  if (e.blocks16 % splits || e.v & 8) return false;
  return all || (ctas * splits * e.threads / 32 >= 100 * 8 && (splits == 1 || ctas * splits <= 140 * e.ctas));
}
static std::vector<Plan> plans(const Int4Shape& s, bool all, int steps) {
  std::vector<Plan> r;
  for (const Entry& e : entries()) {
    if (e.f16 != (s.dtype == DType::kF16) || e.steps != steps || (!e.medium && (e.rows != 8 * small_blocks(s.rows)))) continue;
    for (int splits = 1; splits <= 4; splits *= 2) if (fits(e, s, all, splits)) r.push_back({&e, splits});
  }
  return r;
}
template <class T> void correctness() {
  int n = 0; const double start = elapsed();
  const auto with = [&](const Case& c) {
    const int kt = (c.ic + 63) / 64, group = c.group ? c.group : kt * 64;
    Int4Shape s; s.dtype = dtype_of<T>(); s.rows = c.m; s.columns = (c.ic + 7) / 8 * 8; s.channels = c.oc; s.strips = (c.oc + 63) / 64; s.depth_tiles = kt; s.group_size = group;
    for (const Plan& plan : plans(s, true, scale_steps(s))) { check<T>(plan.name().c_str(), [&](const Int4Shape& shape, Int4Params p, cudaStream_t st) { return run(shape, plan, p, st); }, c); ++n; }
  };
  int at = 0;
  for (int m : {1, 5, 8, 9, 13, 16, 19, 33, 64, 100, 128}) {
    with({m, 712, at % 2 ? 251 : 328, ++at % 2 ? 128 : 0, -1, at % 3 == 0, m > 4 ? m / 2 : -1});
    with({m, 2056, 520, 128, -1, true, -1});
    with({m, 72, 65, 0, 16, true, m > 2 ? 1 : -1});
    with({m, 1352, 200, 32, -1, true, m > 3 ? 3 : -1}); with({m, 1352, 200, 64, -1, false, m > 3 ? 3 : -1});
    with({m, 4096, 1088, 128, -1, true, -1});
  }
  for (int m : {2, 16, 32}) with({m, 8192, 1088, 128, -1, false, -1});
  printf("%s: %d cases, %d failures, worst error %.2e, %.1f s\n", dtype_of<T>() == DType::kF16 ? "f16" : "bf16", n, g_failures, g_worst[dtype_of<T>() == DType::kBF16], elapsed() - start); fflush(stdout);
}
static const std::pair<int, int> kLayers[] = {{4096, 4096}, {8192, 28672}, {14336, 4096}, {4096, 14336}, {8192, 8192}, {5120, 13824}, {4096, 11008}};
template <class T> void sweep(Cublas& cublas, bool have, const std::vector<int>& layers, const std::vector<int>& ms, int rounds) {
  for (int l : layers) {
    auto [ic, oc] = kLayers[l];
    Layer<T> layer(ic, oc, 128, 128, have);
    printf("== %s %d x %d: reading alone %.2f\n", dtype_of<T>() == DType::kF16 ? "f16" : "bf16", ic, oc, layer.time_read());
    for (int m : ms) {
      const Int4Shape s = layer.shape(m);
      const std::vector<Plan> all = plans(s, false, 8);
      std::vector<std::vector<double>> t(all.size() + 1);
      for (int round = 0; round < rounds; ++round) {
        if (have && round % 3 == 0) t.back().push_back(layer.time_cublas(cublas, m, 3, 1500));
        for (size_t i = 0; i < all.size(); ++i) {
          const Launch launch = [&](const Int4Shape& s, Int4Params p, cudaStream_t st) { return run(s, all[i], p, st); };
          if (!round) { cudaError_t e = launch(s, layer.params(m, 0), nullptr); if (e != cudaSuccess) { printf("%s: %s\n", all[i].name().c_str(), cudaGetErrorName(e)); cudaGetLastError(); t[i].push_back(1e9); continue; } CHECK(cudaDeviceSynchronize()); }
          t[i].push_back(t[i].size() && t[i][0] > 1e8 ? 1e9 : layer.time(launch, m, 3, 1000));
        }
      }
      std::vector<std::pair<double, std::string>> out; std::sort(t.back().begin(), t.back().end());
      const double dense = t.back().empty() ? 0 : t.back()[t.back().size() / 2];
      for (size_t i = 0; i < all.size(); ++i) { std::sort(t[i].begin(), t[i].end()); out.push_back({t[i][t[i].size() / 2], all[i].name()}); }
      std::sort(out.begin(), out.end());
      printf("M %d cuBLAS %.2f best %.2fx", m, dense, out.empty() ? 0.0 : dense / out[0].first);
      for (size_t i = 0; i < out.size() && i < 30; ++i) printf(" | %s %.2f", out[i].second.c_str(), out[i].first);
      printf("\n"); fflush(stdout);
      if (elapsed() > g_budget) { printf("out of time\n"); return; }
    }
  }
}
// Where the time of a small kernel goes: medians over warps, ns at the SM's clock, of a launch in the middle of a graph.
static void timeline(int m) {
  Layer<__half> layer(4096, 4096, 128, 16, false); const Int4Shape s = layer.shape(m);
  long long* ws = device_alloc<long long>(1 << 20);
  for (const Entry& e : entries()) {
    if (e.medium || !(e.v & 8) || e.rows != 8 * small_blocks(m) || !e.f16) continue;
    const Plan plan{&e, e.units == 2 ? 1 : 2};
    const int warps = e.threads / 32, ctas = 64 * 64 / e.channels * plan.splits;
    CHECK(cudaMemset(ws, 0, 8 << 20));
    const Launch launch = [&](const Int4Shape& s, Int4Params p, cudaStream_t st) { p.marks = ws; return run(s, plan, p, st); };
    const double t = layer.time(launch, m, 3, 1000);
    CHECK(cudaDeviceSynchronize());
    std::vector<long long> h((size_t)ctas * warps * 16); CHECK(cudaMemcpy(h.data(), ws, h.size() * 8, cudaMemcpyDeviceToHost));
    long long first = 1ll << 62, last = 0, late = 0; for (size_t i = 0; i < h.size(); i += 16) { first = std::min(first, h[i + 15]); last = std::max(last, h[i + 14]); late = std::max(late, h[i + 15]); }
    printf("M %d %s: %.2f us; first start to last end %lld ns, to last start %lld ns; cycles from the CTA's start, 10%%/50%%/90%% of warps:", m, plan.name().c_str(), t, last - first, late - first);
    for (int at = 0; at < 13; ++at) {
      std::vector<long long> v; for (int c = 0; c < ctas; ++c) { long long zero = 1ll << 62; for (int w = 0; w < warps; ++w) zero = std::min(zero, h[((size_t)c * warps + w) * 16]); for (int w = 0; w < warps; ++w) { long long x = h[((size_t)c * warps + w) * 16 + at]; if (x) v.push_back(x - zero); } }
      if (v.empty()) continue; std::sort(v.begin(), v.end());
      printf(" [%d] %lld/%lld/%lld", at, v[v.size() / 10], v[v.size() / 2], v[v.size() * 9 / 10]);
    }
    printf("\n"); fflush(stdout);
  }
}
int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  CHECK(cudaMalloc(&g_ws, 64 << 20));
  if (what == "check") { correctness<__half>(); correctness<__nv_bfloat16>(); printf("%s, %.1f s\n", g_failures ? "FAILED" : "ALL OK", elapsed()); return g_failures != 0; }
  if (what == "line") { timeline(16); timeline(8); return 0; }
  if (what == "one") {  // one M ic oc name
    const int m = atoi(argv[2]); Layer<__half> layer(atoi(argv[3]), atoi(argv[4]), 128, m, false);
    for (const Plan& plan : plans(layer.shape(m), true, 8)) if (plan.name() == argv[5]) { for (int i = 0; i < 3; ++i) CHECK(run(layer.shape(m), plan, layer.params(m, i), nullptr)); CHECK(cudaDeviceSynchronize()); return 0; }
    printf("no plan %s\n", argv[5]); return 1;
  }
  // f16|bf16 layers(digits) rounds M..
  Cublas cublas; const bool have = what == "f16" && cublas.load();
  std::vector<int> layers, ms; for (const char* c = argv[2]; *c; ++c) layers.push_back(*c - '0');
  for (int i = 4; i < argc; ++i) ms.push_back(atoi(argv[i]));
  if (what == "f16") sweep<__half>(cublas, have, layers, ms, atoi(argv[3]));
  else sweep<__nv_bfloat16>(cublas, false, layers, ms, atoi(argv[3]));
  printf("%.1f s\n", elapsed());
  return 0;
}
