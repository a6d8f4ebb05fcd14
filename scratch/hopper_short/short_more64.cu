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
  bool fixed = false;
  int query_rows = 128, per_sm = 1;
  bool trace = false;
};

__global__ void compare(const T* a, const T* b, int64_t n, double* sums) {
  double up = 0, down = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    const float x = float(a[i]), y = float(b[i]);
    up += double(x - y) * (x - y), down += double(y) * y;
  }
  atomicAdd(sums, up);
  atomicAdd(sums + 1, down);
}

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


constexpr int kUnjoined = 1, kEach = 2, kEager = 4, kTrace = 8, kTwoCtas = 16, kQuick = 64,
              kPlanned = 192;

template <int dim, int n, int groups, int query_stages, bool pingpong, bool overlap, bool skips,
          int ks = 2, int vs = 2, int bits = 0, TileUse use = TileUse::kAny>
Variant variant(const char* name, int waves = -1) {
  using Traits = HopperTraits<T, dim, dim, n, groups, query_stages, pingpong, overlap, false, use,
                              skips, ks, vs, bits>;
  static const HopperTile tile = {false,    dim,     dim, n, groups, query_stages,
                                  pingpong, overlap, 0,   0, use};
  Variant v;
  v.name = name;
  v.kernel = {DType::kBF16, tile, prepare_hopper_forward<Traits>, launch_hopper_kernel<Traits>,
              nullptr};
  v.plan.tile = &tile;
  v.waves = waves;
  v.query_rows = (bits & kEach) ? 64 : 64 * groups;
  v.per_sm = (bits & kTwoCtas) ? 2 : 1;
  v.trace = bits & kTrace;
  return v;
}
Variant fixed(Variant v) {
  v.fixed = true;
  v.name += ", fixed rounds";
  return v;
}

void launch(const Variant& v, const Buffers& b, int sms) {
  sms *= v.per_sm;
  const ForwardParams& p = b.p;
  const HopperTile& tile = *v.plan.tile;
  HopperForwardParams params;
  params.problem = p;
  params.order = tile_order(p, v.plan, sms, reinterpret_cast<int*>(b.workspace));
  if (v.waves >= 0 && p.causal) {
    const int64_t head_bytes = int64_t{p.max_k} * p.dim * 4;
    int64_t heads = (int64_t{32} << 20) / head_bytes;
    if (v.waves)
      heads = std::min<int64_t>(heads, (v.waves * sms + v.plan.tiles(p) - 1) / v.plan.tiles(p));
    params.order.section =
        static_cast<int>(std::min<int64_t>(std::max<int64_t>(heads, 1), params.order.rows));
  }
  if (v.fixed) params.order.counter = nullptr;
  params.few = few_tiles(p, v.plan, b.workspace + kHopperWorkspaceBytes);
  CHECK(encode_tensor_map(DType::kBF16, p.query, p.packs, p.q_rows, p.heads, p.dim, v.query_rows,
                          64, &params.query));
  CHECK(encode_tensor_map(DType::kBF16, p.key, p.packs, p.k_rows, p.kv_heads, p.dim, tile.n, 64,
                          &params.key));
  CHECK(encode_tensor_map(DType::kBF16, p.value, p.packs, p.k_rows, p.kv_heads, p.dim, tile.n, 64,
                          &params.value));
  if (params.order.counter) CHECK(cudaMemsetAsync(params.order.counter, 0, 4));
  const int64_t total = int64_t{params.order.tiles} * params.order.rows;
  CHECK(v.kernel.launch(params, static_cast<int>(std::min<int64_t>(total, sms)), 0));
}

void print_trace(const Buffers& b, int sms, int ctas) {
  std::vector<unsigned> m(ctas * 32);
  CHECK(cudaMemcpy(m.data(), b.workspace + kHopperWorkspaceBytes, m.size() * 4, cudaMemcpyDeviceToHost));
  const char* names[8] = {"query", "key", "value", "turn", "scores", "output", "store", "all"};
  double tiles = 0;
  for (int c = 0; c < ctas; ++c) tiles += m[c * 32 + kMeterTurn];
  for (int g = 0; g < 4; ++g) {
    double sum[8] = {};
    for (int c = 0; c < ctas; ++c)
      for (int k = 0; k < 8; ++k) sum[k] += m[c * 32 + 8 * g + k];
    if (sum[7] == 0) continue;
    std::printf("    %s clocks a tile:", g ? "consumer" : "producer");
    for (int k = 0; k < 8; ++k)
      if (g || (k != 3)) std::printf(" %s %.0f", names[k], sum[k] / tiles);
    std::printf("\n");
  }
}

// Median and least microseconds of each variant, in turns; and how far its output is from the first one's.
void table(const Buffers& b, const std::vector<Variant>& variants) {
  int sms = 0;
  CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
  static void* flush = nullptr;
  static T* reference = nullptr;
  static double* sums = nullptr;
  if (!flush) {
    CHECK(cudaMalloc(&flush, 256 << 20));
    CHECK(cudaMalloc(&reference, 80 << 20));
    CHECK(cudaMalloc(&sums, 16));
  }
  const ForwardParams& p = b.p;
  const double flops = 4.0 * p.q_rows * p.k_rows * p.dim * p.heads * p.packs / (p.causal ? 2 : 1);
  const int repeats = p.q_rows > 4096 ? 7 : 31;
  std::vector<std::vector<float>> times(variants.size());
  std::vector<double> error(variants.size());
  cudaEvent_t e0, e1;
  CHECK(cudaEventCreate(&e0));
  CHECK(cudaEventCreate(&e1));
  std::printf("D %d S %d B %d H %d%s\n", p.dim, p.q_rows, p.packs, p.heads,
              p.causal ? " causal" : " full");
  for (int r = -2; r < repeats; ++r)
    for (size_t i = 0; i < variants.size(); ++i) {
      if (r == -2) {
        CHECK(variants[i].kernel.prepare());
        CHECK(cudaMemset(b.p.out, 0xff, b.elements * 2));
        CHECK(cudaMemset(b.workspace, 0xff, 64 << 20));
        launch(variants[i], b, sms);
        CHECK(cudaDeviceSynchronize());
        if (i == 0)
          CHECK(cudaMemcpy(reference, b.p.out, b.elements * 2, cudaMemcpyDeviceToDevice));
        CHECK(cudaMemset(sums, 0, 16));
        compare<<<264, 256>>>(static_cast<const T*>(b.p.out), reference, b.elements, sums);
        double s[2];
        CHECK(cudaMemcpy(s, sums, 16, cudaMemcpyDeviceToHost));
        error[i] = std::sqrt(s[0] / s[1]);
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
  for (size_t i = 0; i < variants.size(); ++i) {
    std::sort(times[i].begin(), times[i].end());
    const double us = times[i][times[i].size() / 2];
    std::printf("  %-44s %8.1f us (least %8.1f) %6.1f TFLOP/s %s\n", variants[i].name.c_str(), us,
                times[i][0], flops / us * 1e-6,
                error[i] == 0 ? "" : error[i] < 5e-3 ? "rounding" : "WRONG");
    if (variants[i].trace) {
      launch(variants[i], b, sms);
      CHECK(cudaDeviceSynchronize());
      print_trace(b, sms, sms * variants[i].per_sm);
    }
  }
  std::fflush(stdout);
}

constexpr int kDim = 64;
std::vector<Variant> variants(int length, bool, int) {
  const int w = length < 2048 ? 2 : 4;
  return {
      variant<64, 128, 2, 2, true, false, false>("two, two Q, joined", w),
      variant<64, 128, 2, 2, true, false, false, 2, 2, kQuick>("quick, two, two Q, joined", w),
      variant<64, 128, 3, 1, true, false, false, 2, 2, kQuick>("quick, three", w),
      variant<64, 64, 2, 1, false, false, true, 4, 4, kTwoCtas | kEager | kQuick>("quick, two CTAs, skipping, 4 stages", w),
      variant<64, 128, 2, 2, true, false, false, 4, 4, kEager | 448>("planned in place, two, two Q, joined, 4 stages", w),
      variant<64, 128, 3, 1, true, false, false, 4, 4, 448>("planned in place, three, 4 stages", w),
      variant<64, 64, 2, 1, false, false, true, 4, 4, kTwoCtas | kEager | 448>("planned in place, two CTAs, skipping, 4 stages", w),
  };
}

int run(int group) {
  for (int length : {512, 1024, 2048, 4096, 16384})
    for (bool causal : {true, false}) {
      if (length == 16384 && kDim == 256) continue;
      const Buffers b(16384 / length, length, length, 2048 / kDim, 2048 / kDim, kDim, causal);
      table(b, variants(length, causal, group));
    }
  return 0;
}

}  // namespace jax_baracuda

int main(int, char** argv) { return jax_baracuda::run(std::atoi(argv[1])); }
