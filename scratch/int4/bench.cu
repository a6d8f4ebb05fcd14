// The int4 kernels on a GPU: are they right, how fast is what the heuristic chooses, and what would have been faster.
//
//   int4_bench check          every tile x split x M, groups, zero points, ragged channels, NaN rows: ~10 s
//   int4_bench plan           what plan_int4 chooses, f16 and bf16, against cuBLAS f16: ~20 s
//   int4_bench sweep [M ...]  every tile and split at these M (16 32 64 128 256), the fastest marked: ~20 s
//   int4_bench                all three, under 60 s: stops where time runs out
#include "harness.cuh"
#include "int4/launch.h"

static int64_t g_budget = 55;

static const HopperInt4Tile& tile_of(const HopperInt4Kernel& k) { return k.medium ? kMediumTiles[k.tile] : kLargeTiles[k.tile]; }
static std::string name_of(const Int4Plan& plan) {
  char t[96];
  if (plan.hopper) { const HopperInt4Tile& h = tile_of(*plan.hopper); snprintf(t, 96, "%s %dx%d d%d s%d", plan.hopper->medium ? "medium" : "large", h.channels(), h.n, h.depth_groups, plan.splits); }
  else { const SmallTile& h = plan.small->tile; snprintf(t, 96, "small r%d %dx%d s%d%s", h.rows(), h.channel_warps, h.depth_warps, plan.splits, plan.splits > 1 && !plan.cluster ? "w" : ""); }
  return t;
}
static cudaError_t run(const Int4Shape& s, const Int4Plan& plan, Int4Params p, cudaStream_t stream) {
  const cudaError_t e = plan.hopper ? plan.hopper->prepare() : plan.small->prepare();
  return e != cudaSuccess ? e : launch_int4(s, plan, p, stream);
}
// Microseconds of a launch; the first one, which loads the kernel, is not captured.
template <class T> static double time_launch(Layer<T>& layer, const Launch& launch, int m, int rounds, double budget) {
  CHECK(launch(layer.shape(m), layer.params(m, 0), nullptr)); CHECK(cudaDeviceSynchronize());
  return layer.time(launch, m, rounds, budget);
}
// All plans that could serve a shape; `all`: silly ones too.
static std::vector<Int4Plan> plans(const Int4Shape& s, bool all) {
  std::vector<Int4Plan> result;
  for (const HopperInt4Kernel& k : hopper_int4_kernels()) {
    const HopperInt4Tile& t = tile_of(k);
    if (k.dtype != s.dtype || k.scale_steps != std::min(scale_steps(s), k.medium ? 8 : 4)) continue;
    const int64_t row_blocks = (s.rows + t.n - 1) / t.n, blocks = row_blocks * ((s.strips * 64 + t.channels() - 1) / t.channels());
    const int64_t units = k.medium ? (s.depth_tiles + 1) / 2 : s.depth_tiles;
    for (int splits = 1; splits <= 8; splits *= 2) {
      if (t.quads() % splits || (splits > 1 && splits > units)) break;
      if (!all && (row_blocks > 4 || (t.n >= 2 * s.rows && t.n > 16) || blocks * splits < 56 || (splits > 1 && blocks * splits > 270))) continue;
      Int4Plan plan; plan.hopper = &k; plan.splits = splits; plan.cluster = splits > 1; result.push_back(plan);
    }
  }
  int blocks = 1;
  while (blocks < 4 && s.rows > 8 * blocks) blocks *= 2;
  for (const SmallInt4Kernel& k : small_int4_kernels()) {
    if (s.rows > 32 || k.dtype != s.dtype || k.scale_steps != scale_steps(s) || k.tile.blocks != blocks) continue;
    const int64_t ctas = (s.strips * 64 + k.tile.channels() - 1) / k.tile.channels();
    for (int splits = 1; splits <= 8 && splits <= (s.depth_tiles + 1) / 2 && k.tile.warp_blocks * k.tile.channel_warps % splits == 0; splits *= 2) {
      if (!all && (ctas * splits * k.tile.threads() < 56 * 256 || (splits > 1 && ctas * splits > 140 * k.tile.ctas_per_sm))) continue;
      Int4Plan plan; plan.small = &k; plan.splits = splits; plan.cluster = splits > 1; result.push_back(plan);
    }
  }
  return result;
}

template <class T> void correctness() {
  int n = 0; const double start = elapsed();
  const auto with = [&](const Case& c) {
    const int kt = (c.ic + 63) / 64, group = c.group ? c.group : kt * 64;
    Int4Shape s; s.dtype = dtype_of<T>(); s.rows = c.m; s.columns = (c.ic + 7) / 8 * 8; s.channels = c.oc; s.strips = (c.oc + 63) / 64; s.depth_tiles = kt; s.group_size = group;
    for (const Int4Plan& plan : plans(s, true)) {
      check<T>(name_of(plan).c_str(), [&](const Int4Shape& shape, Int4Params p, cudaStream_t st) { return run(shape, plan, p, st); }, c);
      ++n;
    }
  };
  const int groups[] = {128, 32, 64, 0, 192};
  int at = 0;
  for (int m : {1, 9, 16, 17, 24, 31, 32, 33, 48, 64, 65, 96, 127, 128, 129, 257}) {
    const int group = groups[at++ % 5];
    with({m, group == 192 ? 1152 : 712, at % 2 ? 251 : 328, group, -1, at % 3 == 0, m > 4 ? m / 2 : -1});
  }
  for (int group : {32, 64, 128, 0}) for (int zero : {0, 15, 16}) with({33, 1096, 136, group, zero, zero > 0, 20});
  for (int ic : {8, 64, 72, 136, 200}) with({40, ic, 65, 64, -1, true, 3});
  with({16, 4096, 1088, 128, -1, true, -1}); with({128, 2048, 1088, 128, -1, true, 127});
  printf("%s: %d cases, %d failures so far, %.1f s\n", dtype_of<T>() == DType::kF16 ? "f16" : "bf16", n, g_failures, elapsed() - start); fflush(stdout);
}

static const std::pair<int, int> kLayers[] = {{8192, 28672}, {4096, 4096}, {4096, 14336}, {14336, 4096}};

static void chosen(Cublas& cublas, bool have) {
  for (auto [ic, oc] : kLayers) {
    Layer<__half> layer(ic, oc, 128, 1024, have); Layer<__nv_bfloat16> layer_bf(ic, oc, 128, 1024, false);
    printf("== %d x %d: reading alone %.2f us\n", ic, oc, layer.time_read());
    for (int m : {1, 8, 9, 16, 17, 32, 64, 128, 256, 512, 1024}) {
      std::string name;
      const Launch launch = [&](const Int4Shape& s, Int4Params p, cudaStream_t st) { Int4Plan plan; const cudaError_t e = plan_int4(s, 0, &plan); if (e != cudaSuccess) return e; name = name_of(plan); return launch_int4(s, plan, p, st); };
      const double dense = have ? layer.time_cublas(cublas, m, 3, 3000) : 0, us = time_launch(layer, launch, m, 5, 3000), bf = time_launch(layer_bf, launch, m, 3, 2000);
      printf("M %4d cuBLAS %8.2f us  f16 %8.2f us %5.2fx  bf16 %8.2f us (%+.1f%%)  %s\n", m, dense, us, dense / us, bf, (bf / us - 1) * 100, name.c_str()); fflush(stdout);
      if (elapsed() > g_budget) { printf("out of time\n"); return; }
    }
  }
}

static void sweep(Cublas& cublas, bool have, const std::vector<int>& ms) {
  for (auto [ic, oc] : kLayers) {
    Layer<__half> layer(ic, oc, 128, *std::max_element(ms.begin(), ms.end()), have);
    printf("== %d x %d\n", ic, oc);
    for (int m : ms) {
      const double dense = have ? layer.time_cublas(cublas, m, 3, 2000) : 0;
      std::vector<std::pair<double, std::string>> times;
      for (const Int4Plan& plan : plans(layer.shape(m), false)) times.push_back({time_launch(layer, [&](const Int4Shape& s, Int4Params p, cudaStream_t st) { return run(s, plan, p, st); }, m, 3, 1000), name_of(plan)});
      std::sort(times.begin(), times.end());
      Int4Plan plan; CHECK(plan_int4(layer.shape(m), 0, &plan));
      printf("M %4d cuBLAS %.2f us, chosen: %s\n", m, dense, name_of(plan).c_str());
      for (size_t i = 0; i < times.size() && (i < 6 || times[i].second == name_of(plan)); ++i) printf("     %8.2f us %5.2fx  %s%s\n", times[i].first, dense / times[i].first, times[i].second.c_str(), times[i].second == name_of(plan) ? "  <- chosen" : "");
      for (size_t i = 6; i < times.size(); ++i) if (times[i].second == name_of(plan)) printf("     %8.2f us %5.2fx  %s  <- chosen, rank %zu\n", times[i].first, dense / times[i].first, times[i].second.c_str(), i + 1);
      fflush(stdout);
      if (elapsed() > g_budget) { printf("out of time\n"); return; }
    }
  }
}

int main(int argc, char** argv) {
  cudaDeviceProp prop; CHECK(cudaGetDeviceProperties(&prop, 0)); printf("%s, %d SMs\n", prop.name, prop.multiProcessorCount);
  const std::string what = argc > 1 ? argv[1] : "all";
  std::vector<int> ms; for (int i = 2; i < argc; ++i) ms.push_back(atoi(argv[i]));
  if (ms.empty()) ms = {16, 32, 64, 128, 256};
  if (what == "check" || what == "all") { correctness<__half>(); correctness<__nv_bfloat16>(); }
  Cublas cublas; const bool have = what != "check" && cublas.load();
  if (what == "plan" || what == "all") chosen(cublas, have);
  if (what == "sweep" || what == "all") sweep(cublas, have, ms);
  printf("%s, %.1f s\n", g_failures ? "FAILED" : "ALL OK", elapsed());
  return g_failures != 0;
}
