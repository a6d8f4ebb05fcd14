// Sweeps what docs/attention_hopper.md leaves open of short calls, in one process with the variants taking turns and the L2
// cache cleared before each call. Not part of the package.
//
//   nvcc -std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 --expt-relaxed-constexpr -cudart static -Iffi
//        -o hopper_short scratch/hopper_short.cu ffi/common/tensor_map.cc        (about 2 minutes; needs no GPU)
//   ./hopper_short            all tables, under 1 minute on an H200
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "attention/hopper/dispatch.cc"  // its helpers, too
#include "attention/hopper/inst/kernel.cuh"

namespace jax_baracuda {

const std::vector<HopperKernel>& hopper_kernels() {
  static const std::vector<HopperKernel> none;
  return none;
}

#define CHECK(x)                                                                    \
  do {                                                                              \
    if (cudaError_t e = (x); e != cudaSuccess) {                                    \
      std::printf("%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e)); \
      std::exit(1);                                                                 \
    }                                                                               \
  } while (0)

using T = __nv_bfloat16;

__global__ void fill(T* x, int64_t n, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u ^ seed;
    float sum = 0.0f;  // of 4 uniform numbers: near enough to normal
    for (int k = 0; k < 4; ++k) {
      h ^= h << 13, h ^= h >> 17, h ^= h << 5;
      sum += (h >> 8) * (1.0f / (1 << 24)) - 0.5f;
    }
    x[i] = T(1.732f * sum);
  }
}

struct Variant {
  std::string name;
  HopperKernel kernel;
  HopperPlan plan;
  int waves = -1;  // of a section; 0: as much as the cache holds; -1: as dispatch.cc says
};

struct Buffers {
  ForwardParams p = {};
  unsigned char* workspace;
  int64_t elements;
  static T* random(int64_t n, uint32_t seed) {
    T* x;
    CHECK(cudaMalloc(&x, n * 2));
    fill<<<1024, 256>>>(x, n, seed);
    return x;
  }
  Buffers(int batch, int rows, int keys, int heads, int kv_heads, int dim, bool causal) {
    elements = int64_t{batch} * rows * heads * dim;
    p.query = random(elements, 1);
    p.key = random(int64_t{batch} * keys * kv_heads * dim, 2);
    p.value = random(int64_t{batch} * keys * kv_heads * dim, 3);
    CHECK(cudaMalloc(&p.out, elements * 2));
    CHECK(cudaMalloc(&p.lse, elements / dim * 4));
    CHECK(cudaMalloc(&workspace, 64 << 20));
    p.packs = batch, p.sequences = 1;
    p.q_rows = p.max_q = rows, p.k_rows = p.max_k = keys;
    p.heads = heads, p.kv_heads = kv_heads, p.group = heads / kv_heads, p.dim = p.dim_v = dim;
    p.causal = causal, p.window_left = p.window_right = -1;
    p.scale = 1.0f / std::sqrt(static_cast<float>(dim)), p.dropout_scale = 1.0f;
    p.vector_q = p.vector_v = 1;
    p.lse_head_stride = rows, p.lse_row_stride = 1;
  }
  ~Buffers() {
    for (const void* x :
         {p.query, p.key, p.value, (const void*)p.out, (const void*)p.lse, (const void*)workspace})
      CHECK(cudaFree(const_cast<void*>(x)));
  }
  std::vector<float> out() const {
    std::vector<T> raw(elements);
    CHECK(cudaMemcpy(raw.data(), p.out, elements * 2, cudaMemcpyDeviceToHost));
    return std::vector<float>(raw.begin(), raw.end());
  }
};

template <int dim, int n, int groups, int query_stages, bool pingpong, bool overlap, TileUse use,
          bool skips>
Variant variant(const char* name, int packed = 1, int splits = 1, int waves = -1) {
  using Traits =
      HopperTraits<T, dim, dim, n, groups, query_stages, pingpong, overlap, false, use, skips>;
  static const HopperTile tile = {false,    dim,     dim, n, groups, query_stages,
                                  pingpong, overlap, 0,   0, use};
  Variant v;
  v.name = name;
  v.kernel = {DType::kBF16, tile, prepare_hopper_forward<Traits>, launch_hopper_kernel<Traits>,
              nullptr};
  if constexpr (Traits::kFewTiles) v.kernel.combine = launch_combine_splits<T>;
  v.plan.tile = &tile;
  v.plan.packed = packed;
  v.plan.splits = splits;
  v.waves = waves;
  return v;
}

// launch_hopper_forward() with the order at will.
void launch(const Variant& v, const Buffers& b, int sms) {
  const ForwardParams& p = b.p;
  const HopperTile& tile = *v.plan.tile;
  HopperForwardParams params;
  params.problem = p;
  params.order = tile_order(p, v.plan, sms, reinterpret_cast<int*>(b.workspace));
  if (v.waves >= 0) {
    const int64_t head_bytes = int64_t{p.max_k} * p.dim * 4;
    int64_t heads = (int64_t{32} << 20) / head_bytes;
    if (v.waves)
      heads = std::min<int64_t>(heads, (v.waves * sms + v.plan.tiles(p) - 1) / v.plan.tiles(p));
    params.order.section =
        static_cast<int>(std::min<int64_t>(std::max<int64_t>(heads, 1), params.order.rows));
  }
  params.few = few_tiles(p, v.plan, b.workspace + kHopperWorkspaceBytes);
  CHECK(encode_queries({&v.kernel, v.plan}, p, &params.query));
  CHECK(encode_tensor_map(DType::kBF16, p.key, p.packs, p.k_rows, p.kv_heads, p.dim, tile.n, 64,
                          &params.key));
  CHECK(encode_tensor_map(DType::kBF16, p.value, p.packs, p.k_rows, p.kv_heads, p.dim, tile.n, 64,
                          &params.value));
  if (params.order.counter) CHECK(cudaMemsetAsync(params.order.counter, 0, 4));
  const int64_t total = int64_t{params.order.tiles} * params.order.rows;
  CHECK(v.kernel.launch(params, static_cast<int>(std::min<int64_t>(total, sms)), 0));
  if (v.plan.splits > 1) CHECK(v.kernel.combine(params, 0));
}

// Median microseconds of each variant, in turns; and how far its output is from the first one's.
void table(const char* title, const Buffers& b, const std::vector<Variant>& variants,
           int repeats = 15) {
  int sms = 0;
  CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
  static void* flush = nullptr;
  if (!flush) CHECK(cudaMalloc(&flush, 256 << 20));
  std::vector<std::vector<float>> times(variants.size());
  std::vector<double> error(variants.size());
  std::vector<float> first;
  cudaEvent_t e0, e1;
  CHECK(cudaEventCreate(&e0));
  CHECK(cudaEventCreate(&e1));
  for (int r = -2; r < repeats; ++r)
    for (size_t i = 0; i < variants.size(); ++i) {
      if (r == -2) {
        CHECK(variants[i].kernel.prepare());
        CHECK(cudaMemset(b.p.out, 0xff, b.elements * 2));
        CHECK(cudaMemset(b.workspace, 0xff, 64 << 20));
        launch(variants[i], b, sms);
        CHECK(cudaDeviceSynchronize());
        const std::vector<float> out = b.out();
        if (i == 0) first = out;
        double up = 0, down = 0;
        for (size_t k = 0; k < out.size(); ++k) {
          const double d = out[k] - first[k];
          up += d * d, down += double{first[k]} * first[k];
        }
        error[i] = std::sqrt(up / down);
      }
      CHECK(cudaMemsetAsync(flush, r, 256 << 20));
      CHECK(cudaEventRecord(e0));
      launch(variants[i], b, sms);
      CHECK(cudaEventRecord(e1));
      CHECK(cudaEventSynchronize(e1));
      float ms;
      CHECK(cudaEventElapsedTime(&ms, e0, e1));
      if (r >= 0) times[i].push_back(ms * 1000);
    }
  const ForwardParams& p = b.p;
  const double flops = 4.0 * p.q_rows * p.k_rows * p.dim * p.heads * p.packs / (p.causal ? 2 : 1);
  std::printf("%s: B %d S %d K %d H %d/%d D %d%s\n", title, p.packs, p.q_rows, p.k_rows, p.heads,
              p.kv_heads, p.dim, p.causal ? " causal" : "");
  for (size_t i = 0; i < variants.size(); ++i) {
    std::sort(times[i].begin(), times[i].end());
    const double us = times[i][times[i].size() / 2];
    std::printf("  %-32s %8.1f us %7.1f TFLOP/s   difference %.1e %s\n", variants[i].name.c_str(),
                us, flops / us * 1e-6, error[i], error[i] < 5e-3 ? "" : "WRONG");
  }
  std::fflush(stdout);
}

template <int dim, int n, TileUse use, bool skips, bool pingpong, bool overlap>
void with_waves(std::vector<Variant>* to, const std::string& name) {
  for (int waves : {0, 1, 2, 4}) {
    to->push_back(variant<dim, n, 2, 1, pingpong, overlap, use, skips>("", 1, 1, waves));
    to->back().name =
        name + (waves ? ", sections of " + std::to_string(waves) + " waves" : ", of 32 MB");
  }
}

int run() {
  constexpr auto kAny = TileUse::kAny, kDiagonal = TileUse::kDiagonal, kFew = TileUse::kFewTiles;
  for (int length : {512, 1024, 2048}) {
    std::vector<Variant> v;
    with_waves<128, 128, kAny, false, true, true>(&v, "usual");
    with_waves<128, 128, kDiagonal, true, true, true>(&v, "diagonal");
    v.push_back(
        variant<128, 128, 2, 2, true, true, kAny, false>("two buffers of queries, overlap"));
    table("diagonal", Buffers(16384 / length, length, length, 16, 16, 128, true), v);
    std::vector<Variant> w = {variant<64, 128, 3, 1, true, false, kAny, false>("three warpgroups"),
                              variant<64, 128, 2, 2, true, false, kAny, false>("two, two buffers")};
    with_waves<64, 128, kDiagonal, true, true, false>(&w, "diagonal");
    table("diagonal", Buffers(16384 / length, length, length, 32, 32, 64, true), w);
    std::vector<Variant> x;
    with_waves<256, 80, kAny, false, false, false>(&x, "no skipping");
    with_waves<256, 80, kAny, true, false, false>(&x, "skipping");
    table("diagonal", Buffers(16384 / length, length, length, 8, 8, 256, true), x);
  }
  struct Call {
    int batch, rows, keys, heads, kv_heads;
  };
  for (const Call& c : {Call{1, 16, 8192, 32, 8},
                        {1, 128, 8192, 32, 8},
                        {4, 16, 2048, 32, 8},
                        {1, 1, 32768, 32, 8},
                        {1, 512, 4096, 8, 8},
                        {64, 16, 2048, 64, 8}}) {
    std::vector<Variant> v = {variant<128, 128, 2, 1, true, true, kAny, false>("usual")};
    for (int packed : {1, c.heads / c.kv_heads})
      for (int splits : {1, 2, 4, 8, 16, 32}) {
        if (packed == 1 && splits > 1 && c.rows < 128) continue;
        if (packed > 1 && c.heads == c.kv_heads) continue;
        if (int64_t{splits} * c.batch * c.rows * c.heads * 129 * 4 > (60 << 20)) continue;
        v.push_back(variant<128, 128, 2, 1, true, true, kFew, false>("", packed, splits));
        v.back().name =
            std::to_string(packed) + " heads a tile, " + std::to_string(splits) + " splits";
      }
    const Buffers b(c.batch, c.rows, c.keys, c.heads, c.kv_heads, 128, true);
    const HopperPlan plan = choose_hopper_plan(b.p, int64_t{1} << 40);
    char title[96];
    std::snprintf(title, sizeof title, "few tiles (plan: %d heads, %d splits)", plan.packed,
                  plan.splits);
    table(title, b, v);
  }
  return 0;
}

}  // namespace jax_baracuda

int main() { return jax_baracuda::run(); }
