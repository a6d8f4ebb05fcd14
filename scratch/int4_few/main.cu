#include "harness.cuh"
#include <climits>
#include "entry.cuh"
#include "int4/hopper_params.h"
#include "int4/config.h"
#include "common/tensor_map.h"
#include "list.inc"
static double g_budget = 30; static int g_group = 128;
static const Entry* find(const std::string& n) { for (const Entry& e : entries()) if (n == e.name) return &e; return nullptr; }
struct Plan { const Entry* e; int splits; std::string name() const { return std::string(e->name) + (splits > 1 ? "/" + std::to_string(splits) : ""); } };
static bool g_between = false;
__global__ void between(float* p) { p[(size_t)blockIdx.x * 256 + threadIdx.x] *= 0.5f; }
static cudaError_t run(const Int4Shape& s, const Plan& plan, Int4Params p, cudaStream_t stream) {
  const Entry& e = *plan.e;
  cudaError_t err = cudaFuncSetAttribute(e.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, e.shared_bytes);
  if (err != cudaSuccess) return err;
  p.set_splits(plan.splits, (s.depth_tiles + 1) / 2); p.partials = nullptr;
  cudaLaunchAttribute a2[2]; cudaLaunchAttribute& a = a2[0]; a.id = cudaLaunchAttributeClusterDimension; a.val.clusterDim.x = plan.splits; a.val.clusterDim.y = a.val.clusterDim.z = 1;
  cudaLaunchConfig_t l = {}; const unsigned cb = (s.strips * 64 + e.channels - 1) / e.channels, rb = (p.rows + e.rows - 1) / e.rows;
  l.gridDim = e.medium ? dim3(plan.splits, rb, cb) : dim3(plan.splits, cb, rb);
  l.blockDim = e.threads; l.dynamicSmemBytes = e.shared_bytes; l.stream = stream; l.attrs = a2; l.numAttrs = plan.splits > 1; if (e.name[0] == 'P') { a2[l.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization; a2[l.numAttrs].val.programmaticStreamSerializationAllowed = 1; ++l.numAttrs; }
  if (g_between) between<<<128, 256, 0, stream>>>((float*)p.out);
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
static bool possible(const Entry& e, const Int4Shape& s, int splits) {
  if (splits > (s.depth_tiles + 1) / 2) return false;
  if (e.medium) return splits == 1 || (e.rows / 8 % splits == 0 && (e.depth_groups + 1) * e.channels * e.rows * 4 <= kMostExchangeBytes);
  return e.units % splits == 0;
}
static Launch launch_of(Plan plan) { return [plan](const Int4Shape& s, Int4Params p, cudaStream_t st) { return run(s, plan, p, st); }; }
template <class T> void correctness(const std::vector<std::string>& names) {
  int n = 0; const double start = elapsed();
  for (const Entry& e : entries()) {
    bool chosen = names.empty(); for (auto& k : names) chosen = chosen || k == e.name;
    if (!chosen || e.f16 != (dtype_of<T>() == DType::kF16)) continue;
    const auto with = [&](Case c) {
      const int kt = (c.ic + 63) / 64, group = c.group ? c.group : kt * 64;
      Int4Shape s; s.dtype = dtype_of<T>(); s.rows = c.m; s.columns = (c.ic + 7) / 8 * 8; s.channels = c.oc; s.strips = (c.oc + 63) / 64; s.depth_tiles = kt; s.group_size = group;
      if (scale_steps(s) != e.steps) return;
      for (int splits : {1, 2, 4, 8}) if (possible(e, s, splits)) { const Plan plan{&e, splits}; check<T>(plan.name().c_str(), launch_of(plan), c); ++n; }
    };
    const int r = e.rows, before = n, bad = g_failures;
    with({r, 712, 251, 128, -1, true, r / 2}); with({r + 5, 712, 328, 0, -1, false, 3}); with({r / 2 + 1, 2056, 520, 128, -1, true, -1});
    with({r - 1, 72, 65, 0, 16, true, 1}); with({r - 3, 1352, 200, 32, -1, true, 3}); with({r, 1352, 200, 64, -1, false, 0});
    with({r, 4096, 520, 32, -1, true, -1}); with({r, 4096, 520, 64, -1, true, -1}); with({r - 2, 1536, 448, 384, -1, true, 0}); with({r, 4096, 1088, 128, -1, true, -1}); with({9, 8192, 520, 128, 8, false, 5});
    printf("%s %d cases %d bad, %.1f s\n", e.name, n - before, g_failures - bad, elapsed() - start); fflush(stdout);
  }
  printf("%s: %d cases, %d failures, worst error %.2e, %.1f s\n", dtype_of<T>() == DType::kF16 ? "f16" : "bf16", n, g_failures, g_worst[dtype_of<T>() == DType::kBF16], elapsed() - start); fflush(stdout);
}
struct Item { std::string name; int splits; };
template <class T> void turns(Cublas* cublas, int ic, int oc, int m, const std::vector<Item>& items, int rounds) {
  if (elapsed() > g_budget) { printf("out of time\n"); return; }
  Layer<T> layer(ic, oc, g_group, m, cublas != nullptr); const Int4Shape s = layer.shape(m);
  std::vector<Plan> plans; for (auto& i : items) if (const Entry* e = find(i.name)) plans.push_back({e, i.splits});
  std::vector<std::vector<double>> t(plans.size()); std::vector<double> dense, read;
  for (int r = 0; r < rounds; ++r) {
    if (r % 3 == 0) { read.push_back(layer.time_read()); if (cublas) dense.push_back(layer.time_cublas(*cublas, m, 3, 1500)); }
    for (size_t i = 0; i < plans.size(); ++i) {
      if (!r) { cudaError_t e = run(s, plans[i], layer.params(m, 0), nullptr); if (e == cudaSuccess) e = cudaDeviceSynchronize(); if (e != cudaSuccess) { printf("%s: %s\n", plans[i].name().c_str(), cudaGetErrorName(e)); cudaGetLastError(); t[i].push_back(1e9); continue; } }
      t[i].push_back(t[i].size() && t[i][0] > 1e8 ? 1e9 : layer.time(launch_of(plans[i]), m, 3, 1000));
    }
  }
  const auto med = [](std::vector<double> v) { if (v.empty()) return 0.0; std::sort(v.begin(), v.end()); return v[v.size() / 2]; };
  const double base = med(t[0]), d = med(dense);
  printf("%s %dx%d M %d: read %.2f cuBLAS %.2f |", dtype_of<T>() == DType::kF16 ? "f16" : "bf16", ic, oc, m, med(read), d);
  for (size_t i = 0; i < plans.size(); ++i) { const double v = med(t[i]); printf(" %s %.2f", plans[i].name().c_str(), v); if (i) printf(" (%+.1f%%)", 100 * (v / base - 1)); else if (d) printf(" (%.2fx)", d / v); printf(";"); }
  printf("\n"); fflush(stdout);
}
// A graph over and over for 0.15 s: us of a launch in parts of it, and the clock of the SMs.
static void sustain(Cublas& c, int ic, int oc, int m, const Item& item) {
  Layer<__half> layer(ic, oc, 128, m, item.name == "cublas"); const Int4Shape s = layer.shape(m);
  Plan plan{find(item.name), item.splits};
  void* lib = dlopen("libnvidia-ml.so.1", RTLD_NOW); void* dev = nullptr; int (*clock)(void*, int, unsigned*) = nullptr; int (*power)(void*, unsigned*) = nullptr;
  if (lib) { auto init = (int (*)())dlsym(lib, "nvmlInit_v2"); auto get = (int (*)(unsigned, void**))dlsym(lib, "nvmlDeviceGetHandleByIndex_v2"); clock = (int (*)(void*, int, unsigned*))dlsym(lib, "nvmlDeviceGetClockInfo"); power = (int (*)(void*, unsigned*))dlsym(lib, "nvmlDeviceGetPowerUsage"); if (init && get && !init()) get(0, &dev); }
  cudaStream_t st; CHECK(cudaStreamCreateWithFlags(&st, cudaStreamNonBlocking)); cudaGraph_t g; cudaGraphExec_t ex; cudaEvent_t a, b; CHECK(cudaEventCreate(&a)); CHECK(cudaEventCreate(&b));
  const bool dense = item.name == "cublas"; const int count = dense ? layer.dense_copies * 2 : layer.copies * 4;
  if (dense) c.run(layer.x, layer.dense, layer.out2, m, ic, oc, nullptr, true); else CHECK(run(s, plan, layer.params(m, 0), nullptr));
  CHECK(cudaDeviceSynchronize());
  CHECK(cudaStreamBeginCapture(st, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; ++i) if (dense) c.run(layer.x, layer.dense + (int64_t)(i % layer.dense_copies) * ic * oc, layer.out2, m, ic, oc, st, true); else CHECK(run(s, plan, layer.params(m, i % layer.copies), st));
  CHECK(cudaStreamEndCapture(st, &g)); CHECK(cudaGraphInstantiate(&ex, g, 0)); CHECK(cudaGraphLaunch(ex, st)); CHECK(cudaStreamSynchronize(st));
  printf("sustained %s M %d %dx%d: ms: us, MHz, W:", item.name.c_str(), m, ic, oc);
  const double start = now();
  for (int part = 0; part < 8; ++part) {
    const double until = start + (part < 2 ? 0.003 * (part + 1) : 0.03 * part); double us = 0; int n = 0; unsigned mhz = 0, mw = 0;
    while (now() < until) { CHECK(cudaEventRecord(a, st)); for (int k = 0; k < 4; ++k) CHECK(cudaGraphLaunch(ex, st)); CHECK(cudaEventRecord(b, st)); if (part > 1 && clock && dev && n == 0) { clock(dev, 1, &mhz); if (power) power(dev, &mw); } CHECK(cudaStreamSynchronize(st)); float ms; CHECK(cudaEventElapsedTime(&ms, a, b)); us += ms * 1e3 / 4 / count; ++n; }
    printf(" %.0f: %.2f, %u, %u;", (now() - start) * 1e3, us / std::max(n, 1), mhz, mw / 1000);
  }
  printf("\n"); fflush(stdout); cudaGraphExecDestroy(ex); cudaGraphDestroy(g); cudaStreamDestroy(st);
}
// As turns(), but each kernel for 60 ms at a time, of which the last 40 count: at the clock that it leaves the GPU.
template <class T> void hot(int ic, int oc, int m, const std::vector<Item>& items, int rounds, double seconds = 0.06) {
  if (elapsed() > g_budget) { printf("out of time\n"); return; }
  Layer<T> layer(ic, oc, g_group, m, false); const Int4Shape s = layer.shape(m);
  std::vector<Plan> plans; for (auto& i : items) if (const Entry* e = find(i.name)) plans.push_back({e, i.splits}); else printf("no %s\n", i.name.c_str());
  cudaStream_t st; CHECK(cudaStreamCreateWithFlags(&st, cudaStreamNonBlocking)); cudaEvent_t a, b; CHECK(cudaEventCreate(&a)); CHECK(cudaEventCreate(&b));
  const int count = layer.copies * 2; std::vector<cudaGraphExec_t> graphs;
  for (auto& plan : plans) { cudaGraph_t g; cudaGraphExec_t ex; CHECK(run(s, plan, layer.params(m, 0), nullptr)); CHECK(cudaDeviceSynchronize()); CHECK(cudaStreamBeginCapture(st, cudaStreamCaptureModeThreadLocal)); for (int i = 0; i < count; ++i) CHECK(run(s, plan, layer.params(m, i % layer.copies), st)); CHECK(cudaStreamEndCapture(st, &g)); CHECK(cudaGraphInstantiate(&ex, g, 0)); cudaGraphDestroy(g); graphs.push_back(ex); }
  std::vector<std::vector<double>> t(plans.size());
  for (int r = 0; r < rounds; ++r) for (size_t i = 0; i < plans.size(); ++i) {
    const double start = now(); double us = 0; int n = 0;
    while (now() < start + seconds) { CHECK(cudaEventRecord(a, st)); for (int k = 0; k < 4; ++k) CHECK(cudaGraphLaunch(graphs[i], st)); CHECK(cudaEventRecord(b, st)); CHECK(cudaStreamSynchronize(st)); float ms; CHECK(cudaEventElapsedTime(&ms, a, b)); if (now() > start + seconds / 3) us += ms * 1e3 / 4 / count, ++n; }
    t[i].push_back(us / std::max(n, 1));
  }
  printf("hot %s %dx%d M %d:", dtype_of<T>() == DType::kF16 ? "f16" : "bf16", ic, oc, m);
  const auto med = [](std::vector<double> v) { std::sort(v.begin(), v.end()); return v[v.size() / 2]; };
  for (size_t i = 0; i < plans.size(); ++i) { const double v = med(t[i]); printf(" %s %.2f", plans[i].name().c_str(), v); if (i) printf(" (%+.1f%%)", 100 * (v / med(t[0]) - 1)); printf(";"); }
  printf("\n"); fflush(stdout); for (auto g : graphs) cudaGraphExecDestroy(g); cudaStreamDestroy(st);
}
static void line(const char* name, int splits, int m, int ic, int oc) {
  Plan plan{find(name), splits}; if (!plan.e) { printf("no %s\n", name); return; }
  Layer<__half> layer(ic, oc, 128, m, false); const Int4Shape s = layer.shape(m);
  const double us = layer.time(launch_of(plan), m, 5, 1500);
  void* at = plan.e->marks(); const int warps = plan.e->threads / 32, ctas = splits * (oc / plan.e->channels);
  std::vector<long long> v((size_t)ctas * warps * 16); std::vector<double> rel[16]; std::vector<double> span, late;
  for (int rep = 0; rep < 8; ++rep) {
    for (int i = 0; i < 3; ++i) CHECK(run(s, plan, layer.params(m, (rep * 3 + i) % layer.copies), nullptr));
    CHECK(cudaDeviceSynchronize()); CHECK(cudaMemcpy(v.data(), at, v.size() * 8, cudaMemcpyDeviceToHost));
    long long first = LLONG_MAX, last = 0, start = 0;
    for (size_t w = 0; w < v.size(); w += 16) { first = std::min(first, v[w + 15]); last = std::max(last, v[w + 14]); start = std::max(start, v[w + 15]); }
    span.push_back(last - first); late.push_back(start - first);
    for (int c = 0; c < ctas; ++c) { long long zero = LLONG_MAX; for (int w = 0; w < warps; ++w) zero = std::min(zero, v[((size_t)c * warps + w) * 16]); for (int w = 0; w < warps; ++w) for (int i = 0; i < 14; ++i) rel[i].push_back(v[((size_t)c * warps + w) * 16 + i] - zero); }
  }
  const auto q = [](std::vector<double> a, double f) { std::sort(a.begin(), a.end()); return a[(size_t)(f * (a.size() - 1))]; };
  printf("line %s M %d %dx%d: %.2f us, span %.0f ns, last start %.0f:", plan.name().c_str(), m, ic, oc, us, q(span, .5), q(late, .5));
  for (int i = 0; i < 14; ++i) printf(" [%d] %.0f/%.0f/%.0f", i, q(rel[i], .5), q(rel[i], .95), q(rel[i], 1.0));
  printf("\n"); fflush(stdout);
}
#include "jobs.inc"
int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  std::vector<std::string> rest(argv + std::min(argc, 2), argv + argc);
  if (what == "check") { correctness<__half>(rest); correctness<__nv_bfloat16>(rest); printf("%s, %.1f s\n", g_failures ? "FAILED" : "ALL OK", elapsed()); return g_failures != 0; }
  if (what == "one") { const int m = atoi(argv[2]); Layer<__half> layer(atoi(argv[3]), atoi(argv[4]), 128, m, false); const Plan plan{find(argv[5]), atoi(argv[6])}; for (int i = 0; i < 3; ++i) CHECK(run(layer.shape(m), plan, layer.params(m, i), nullptr)); CHECK(cudaDeviceSynchronize()); return 0; }
  Cublas cublas; const bool have = cublas.load();
  jobs(what, have ? &cublas : nullptr);
  printf("%.1f s\n", elapsed());
}
