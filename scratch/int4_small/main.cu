// check | time | sweep | one M ic oc name : the worktree's small kernels, and the old ones ("old ...")
#include "harness.cuh"
#include "int4/launch.h"
struct Entry {
  bool f16; int blocks, channel_warps, depth_warps, stages, ctas, warp_blocks, steps, v, shared_bytes;
  const void* kernel;
  int channels() const { return 16 * warp_blocks * channel_warps; }
};
template <class T, int B, int C, int D, int S, int N, int W, int G, int V> Entry make_entry();
#include "old.inc"
struct Plan { std::string name; bool old; int tile, splits; std::function<cudaError_t(const Int4Shape&, Int4Params, cudaStream_t)> run; };
static cudaError_t run_old(const Entry& e, int splits, Int4Params p, cudaStream_t stream, const Int4Shape& s) {
  cudaError_t err = cudaFuncSetAttribute(e.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, e.shared_bytes);
  if (err != cudaSuccess) return err;
  p.set_splits(splits, (s.depth_tiles + 1) / 2); p.partials = nullptr;
  cudaLaunchAttribute a; a.id = cudaLaunchAttributeClusterDimension; a.val.clusterDim.x = splits; a.val.clusterDim.y = a.val.clusterDim.z = 1;
  cudaLaunchConfig_t l = {}; l.gridDim = dim3(splits, (s.strips * 64 + e.channels() - 1) / e.channels(), (p.rows + 8 * e.blocks - 1) / (8 * e.blocks));
  l.blockDim = 32 * e.channel_warps * e.depth_warps; l.dynamicSmemBytes = e.shared_bytes; l.stream = stream; l.attrs = &a; l.numAttrs = splits > 1;
  void* args[] = {&p};
  return cudaLaunchKernelExC(&l, e.kernel, args);
}
static std::string spell(int c, int d, int s, int n, int w, int splits) { char t[64]; snprintf(t, 64, "%dx%d.%dx%d%s/%d", c, d, s, n, w == 2 ? "h" : w == 7 ? "s" : "", splits); return t; }
static std::vector<Plan> plans(const Int4Shape& s, bool all, bool old) {
  std::vector<Plan> r;
  const int blocks = small_blocks(s.rows);
  const auto wanted = [&](int channels, int warps, int ctas_sm, int splits) {
    const int ctas = (s.strips * 64 + channels - 1) / channels;
    return all || !(ctas * splits * warps < 50 * 8 || (splits > 1 && ctas * splits > 140 * ctas_sm));
  };
  const auto splittable = [&](int blocks16, int splits) { return splits <= 8 && splits <= (s.depth_tiles + 1) / 2 && blocks16 % splits == 0; };
  if (old) for (const Entry& e : old_entries()) {
    if (e.f16 != (s.dtype == DType::kF16) || e.blocks != blocks || e.steps != scale_steps(s)) continue;
    for (int splits = 1; splittable(e.warp_blocks * e.channel_warps, splits); splits *= 2)
      if (wanted(e.channels(), e.channel_warps * e.depth_warps, e.ctas, splits))
        r.push_back({"old " + spell(e.channel_warps, e.depth_warps, e.stages, e.ctas, e.warp_blocks, splits), true, 0, splits, [&e, splits](const Int4Shape& s, Int4Params p, cudaStream_t st) { return run_old(e, splits, p, st, s); }});
  }
  for (const SmallInt4Kernel& k : small_int4_kernels()) {
    const SmallTile& e = k.tile;
    if (k.dtype != s.dtype || e.blocks != blocks || k.scale_steps != scale_steps(s)) continue;
    for (int splits = 1; splittable(e.warp_blocks * e.channel_warps, splits); splits *= 2) {
      if (!wanted(e.channels(), e.channel_warps * e.depth_warps, e.ctas_per_sm, splits)) continue;
      Int4Plan plan; plan.small = &k; plan.splits = splits; plan.cluster = splits > 1;
      r.push_back({spell(e.channel_warps, e.depth_warps, e.stages, e.ctas_per_sm, e.warp_blocks, splits), false, 0, splits, [plan](const Int4Shape& s, Int4Params p, cudaStream_t st) { const cudaError_t err = plan.small->prepare(); return err != cudaSuccess ? err : launch_int4(s, plan, p, st); }});
      if (all && splits > 1 && splits <= 4) {  // through the workspace
        Int4Plan w = plan; w.cluster = false;
        r.push_back({spell(e.channel_warps, e.depth_warps, e.stages, e.ctas_per_sm, e.warp_blocks, splits) + "w", false, 0, splits, [w](const Int4Shape& s, Int4Params p, cudaStream_t st) {
          static float* space = device_alloc<float>(16 << 20); p.partials = space;
          cudaError_t err = w.small->prepare(); if (err == cudaSuccess) err = prepare_int4_combine(s.dtype);
          return err != cudaSuccess ? err : launch_int4(s, w, p, st); }});
      }
    }
  }
  return r;
}
template <class T> void correctness() {
  int n = 0; const double start = elapsed();
  const auto with = [&](const Case& c) {
    const int kt = (c.ic + 63) / 64, group = c.group ? c.group : kt * 64;
    Int4Shape s; s.dtype = dtype_of<T>(); s.rows = c.m; s.columns = (c.ic + 7) / 8 * 8; s.channels = c.oc; s.strips = (c.oc + 63) / 64; s.depth_tiles = kt; s.group_size = group;
    for (const Plan& plan : plans(s, true, false)) { check<T>(plan.name.c_str(), plan.run, c); ++n; }
  };
  int at = 0;
  for (int m : {1, 3, 5, 8, 9, 13, 15, 16, 17, 19, 27, 32, 33, 40}) {
    with({m, 712, at % 2 ? 251 : 328, ++at % 2 ? 128 : 0, -1, at % 3 == 0, m > 4 ? m / 2 : -1});
    with({m, 2056, 520, 128, -1, true, -1});
    with({m, 72, 65, 0, 16, true, m > 2 ? 1 : -1});
    with({m, 1352, 200, 32, -1, true, m > 3 ? 3 : -1}); with({m, 1352, 200, 64, -1, false, m > 3 ? 3 : -1}); with({m, 1344, 456, 192, -1, false, m > 3 ? 0 : -1});
  }
  for (int group : {32, 64, 128, 0}) for (int zero : {0, 8, 15, 16}) for (int m : {7, 14}) with({m, 1096, 136, group, zero, zero > 0, m / 2});
  for (int ic : {8, 64, 72, 136, 200}) for (int m : {4, 12}) with({m, ic, 65, 64, -1, true, 3});
  for (int m : {2, 16, 24}) with({m, 8192, 1088, 128, -1, false, -1});
  with({16, 4096, 4096, 128, -1, false, 15});
  printf("%s: %d cases, %d failures, worst error %.2e, %.1f s\n", dtype_of<T>() == DType::kF16 ? "f16" : "bf16", n, g_failures, g_worst[dtype_of<T>() == DType::kBF16], elapsed() - start); fflush(stdout);
}
static const std::pair<int, int> kLayers[] = {{4096, 4096}, {8192, 28672}, {14336, 4096}, {4096, 14336}, {8192, 8192}, {5120, 13824}, {4096, 11008}, {4096, 1024}, {8192, 1024}};
static double g_budget = 28;
template <class T> void sweep(Cublas& cublas, bool have, const std::vector<int>& ms, bool old, int layers, int rounds, size_t top, int group = 128) {
  for (int l = 0; l < layers; ++l) {
    auto [ic, oc] = kLayers[l];
    Layer<T> layer(ic, oc, group, *std::max_element(ms.begin(), ms.end()), have);
    printf("== g%d %s %d x %d: reading alone %.2f\n", group, dtype_of<T>() == DType::kF16 ? "f16" : "bf16", ic, oc, layer.time_read());
    for (int m : ms) {
      const Int4Shape s = layer.shape(m);
      const std::vector<Plan> all = plans(s, false, old);
      std::vector<std::vector<double>> t(all.size()); std::vector<double> dense;
      for (int round = 0; round < rounds; ++round) {
        if (have && round % 3 == 0) dense.push_back(layer.time_cublas(cublas, m, 3, 2000));
        for (size_t i = 0; i < all.size(); ++i) {
          if (!round) { cudaError_t e = all[i].run(s, layer.params(m, 0), nullptr); if (e != cudaSuccess) { cudaGetLastError(); t[i].push_back(1e9); continue; } CHECK(cudaDeviceSynchronize()); }
          t[i].push_back(t[i].size() && t[i][0] > 1e8 ? 1e9 : layer.time(all[i].run, m, 3, 1000));
        }
      }
      std::vector<std::pair<double, std::string>> out;
      for (size_t i = 0; i < all.size(); ++i) { std::sort(t[i].begin(), t[i].end()); out.push_back({t[i][t[i].size() / 2], all[i].name}); }
      std::sort(out.begin(), out.end()); std::sort(dense.begin(), dense.end());
      const double d = dense.empty() ? 0 : dense[dense.size() / 2];
      printf("M %d cuBLAS %.2f best %.2fx", m, d, out.empty() ? 0.0 : d / out[0].first);
      for (size_t i = 0; i < out.size() && i < top; ++i) printf(" | %s %.2f", out[i].second.c_str(), out[i].first);
      printf("\n"); fflush(stdout);
      if (elapsed() > g_budget) { printf("out of time\n"); return; }
    }
  }
}
int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "check") { correctness<__half>(); correctness<__nv_bfloat16>(); printf("%s, %.1f s\n", g_failures ? "FAILED" : "ALL OK", elapsed()); return g_failures != 0; }
  if (what == "one") {
    const int m = atoi(argv[2]); Layer<__half> layer(atoi(argv[3]), atoi(argv[4]), 128, m, false);
    for (const Plan& plan : plans(layer.shape(m), true, false)) if (plan.name == argv[5]) { for (int i = 0; i < 3; ++i) CHECK(plan.run(layer.shape(m), layer.params(m, i), nullptr)); CHECK(cudaDeviceSynchronize()); return 0; }
    printf("no plan %s\n", argv[5]); return 1;
  }
  Cublas cublas; const bool have = cublas.load();
  std::vector<int> ms; for (int i = 2; i < argc; ++i) ms.push_back(atoi(argv[i]));
  if (what == "f16") sweep<__half>(cublas, have, ms, true, 9, 5, 40);
  if (what == "g32") { sweep<__half>(cublas, false, {16, 8}, true, 4, 3, 6, 32); sweep<__half>(cublas, false, {16, 8}, true, 4, 3, 6, 64); }
  if (what == "bf16") sweep<__nv_bfloat16>(cublas, false, ms, true, 9, 5, 40);
  printf("%.1f s\n", elapsed());
  return 0;
}
