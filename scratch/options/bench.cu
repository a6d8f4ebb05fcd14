// Forward kernel variants in turns. bench MODE ARGS: see main.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>
#include "attention/hopper/dispatch.cc"
#include "attention/hopper/inst/kernel.cuh"
namespace jax_baracuda {
const std::vector<HopperKernel>& hopper_kernels() {
  static const std::vector<HopperKernel> none;
  return none;
}
}
#define V(name, label, waves) extern "C" void name(void*);
#include LIST
#undef V
namespace jax_baracuda {
#define CHECK(x) do { if (cudaError_t e = (x); e != cudaSuccess) { std::printf("%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e)); std::exit(1); } } while (0)
#ifdef HALF
using T = __half; using Other = __nv_bfloat16;
constexpr DType kOwn = DType::kF16; constexpr BiasType kOwnBias = BiasType::kF16, kOtherBias = BiasType::kBF16;
#else
using T = __nv_bfloat16; using Other = __half;
constexpr DType kOwn = DType::kBF16; constexpr BiasType kOwnBias = BiasType::kBF16, kOtherBias = BiasType::kF16;
#endif
__global__ void fill(T* x, int64_t n, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u ^ seed;
    float sum = 0.0f;
    for (int k = 0; k < 4; ++k) { h ^= h << 13, h ^= h >> 17, h ^= h << 5; sum += (h >> 8) * (1.0f / (1 << 24)) - 0.5f; }
    x[i] = T(1.732f * sum);
  }
}
__global__ void clear_counter(int* counter) {
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
  if (threadIdx.x == 0) *counter = 0;
}
struct Variant { std::string name; HopperKernel kernel; HopperPlan plan; int waves = -1; };
__global__ void compare(const T* a, const T* b, int64_t n, double* sums) {
  double up = 0, down = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    const float x = float(a[i]), y = float(b[i]);
    up += double(x - y) * (x - y), down += double(y) * y;
  }
  atomicAdd(sums, up); atomicAdd(sums + 1, down);
}
// A block a sampled row: plain softmax in float32. errs: [0] sum of squares of differences, [1] of values, [2] largest difference of the LSE.
__global__ void reference(ForwardParams p, int step, double* errs) {
  extern __shared__ float w[];
  __shared__ float red[32];
  const int64_t line = int64_t{blockIdx.x} * step;
  if (line >= int64_t{p.packs} * p.heads * p.q_rows) return;
  const int i = line % p.q_rows, h = line / p.q_rows % p.heads, b = line / p.q_rows / p.heads;
  const T* q = (const T*)p.query + ((int64_t{b} * p.q_rows + i) * p.heads + h) * p.dim;
  const int len = p.kv_lengths ? p.kv_lengths[b] : p.k_rows;
  const int off = p.k_rows - p.q_rows;
  int last = p.causal ? min(len, i + off + 1) : len;
  const int first = p.window_left >= 0 ? max(0, i + off - p.window_left) : 0;
  auto sum_all = [&](float x, bool mx) {
    for (int m = 16; m; m /= 2) { float y = __shfl_xor_sync(~0u, x, m); x = mx ? fmaxf(x, y) : x + y; }
    __syncthreads();
    if (threadIdx.x % 32 == 0) red[threadIdx.x / 32] = x;
    __syncthreads();
    x = red[0];
    for (int k = 1; k < blockDim.x / 32; ++k) x = mx ? fmaxf(x, red[k]) : x + red[k];
    return x;
  };
  float top = -1e30f;
  for (int j = first + threadIdx.x; j < last; j += blockDim.x) {
    const T* k = (const T*)p.key + ((int64_t{b} * p.k_rows + j) * p.kv_heads + h / p.group) * p.dim;
    float s = 0;
    for (int d = 0; d < p.dim; ++d) s += float(q[d]) * float(k[d]);
    s *= p.scale;
    if (p.soft_cap > 0) s = p.soft_cap * tanhf(s / p.soft_cap);
    if (p.alibi_slopes) s -= p.alibi_slopes[h] * fabsf(float(i + off - j));
    if (p.bias.type == kOwnBias) s += float(((const T*)p.bias.data)[i * p.bias.row_stride + j + h * p.bias.head_stride + b * p.bias.sequence_stride]);
    const int64_t at = i * p.bias.row_stride + j + h * p.bias.head_stride + b * p.bias.sequence_stride;
    if (p.bias.type == BiasType::kF32) s += ((const float*)p.bias.data)[at];
    if (p.bias.type == BiasType::kMask && !((const uint8_t*)p.bias.data)[at]) s = -INFINITY;
    if (p.bias.type == kOtherBias) s += float(((const Other*)p.bias.data)[i * p.bias.row_stride + j + h * p.bias.head_stride + b * p.bias.sequence_stride]);
    w[j] = s;
    top = fmaxf(top, s);
  }
  top = sum_all(top, true);
  float sum = 0;
  for (int j = first + threadIdx.x; j < last; j += blockDim.x) sum += w[j] = expf(w[j] - top);
  sum = sum_all(sum, false);
  if (!(sum > 0)) last = first;
  __syncthreads();
  if (p.dropout_seed) {
    const uint4 seed = p.dropout_seed[b * p.heads + h];
    for (int j = first + threadIdx.x; j < last; j += blockDim.x) {
      const uint4 x = philox(make_uint4(i / 16 * 8 + i % 8, (j / 16 * 8 + j % 8) / 2, seed.z, seed.w), make_uint2(seed.x, seed.y));
      const uint32_t word[4] = {x.x, x.y, x.z, x.w};
      w[j] = (word[2 * (i / 8 % 2) + j / 8 % 2] >> 16 * (j % 2) & 0x7fff) < p.dropout_threshold ? 0.0f : w[j] * p.dropout_scale;
    }
    __syncthreads();
  }
  float up = 0, down = 0;
  for (int d = threadIdx.x; d < p.dim_v; d += blockDim.x) {
    float o = 0;
    for (int j = first; j < last; ++j) o += w[j] * float(((const T*)p.value)[((int64_t{b} * p.k_rows + j) * p.kv_heads + h / p.group) * p.dim_v + d]);
    if (last > first) o /= sum;
    const float x = float(((const T*)p.out)[((int64_t{b} * p.q_rows + i) * p.heads + h) * p.dim_v + d]);
    up += (x - o) * (x - o); down += o * o;
  }
  up = sum_all(up, false); down = sum_all(down, false);
  if (threadIdx.x == 0) {
    atomicAdd(errs, double(up)); atomicAdd(errs + 1, double(down));
    const float lse = last > first ? top + logf(sum) : 0, got = last > first ? p.lse[(int64_t{b} * p.heads + h) * p.q_rows + i] : 0;
    double d = fabs(lse - got);
    if (!(d < 1e9)) d = 1e9;
    atomicMax((unsigned long long*)(errs + 2), __double_as_longlong(d));
  }
}
__global__ void to_half(const T* x, Other* y, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) y[i] = Other(float(x[i]));
}
__global__ void to_float(const T* x, float* y, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) y[i] = float(x[i]) + 1e-3f;
}
// Hidden at random, whole rows, whole columns, and all of the last keys.
__global__ void to_inf(T* x, int64_t n, int keys) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    const int row = i / keys, key = i % keys;
    if (float(x[i]) > 1.5f || row % 97 == 13 || key % 301 == 77 || key > keys - 40 || (row > 200 && key / 128 == 1)) x[i] = T(-INFINITY);
  }
}
__global__ void to_mask(const T* x, uint8_t* y, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) y[i] = float(x[i]) > -0.5f;
}
struct Buffers {
  ForwardParams p = {};
  unsigned char* workspace;
  int64_t elements;
  std::vector<void*> own;
  T* random(int64_t n, uint32_t seed) {
    T* x; CHECK(cudaMalloc(&x, n * 2)); own.push_back(x);
    fill<<<1024, 256>>>(x, n, seed);
    return x;
  }
  Buffers(int batch, int rows, int keys, int heads, int kv_heads, int dim, bool causal) {
    elements = int64_t{batch} * rows * heads * dim;
    p.query = random(elements, 1);
    p.key = random(int64_t{batch} * keys * kv_heads * dim, 2);
    p.value = random(int64_t{batch} * keys * kv_heads * dim, 3);
    p.out = random(elements, 4);
    CHECK(cudaMalloc(&p.lse, elements / dim * 4)); own.push_back(p.lse);
    CHECK(cudaMalloc(&workspace, 1 << 20)); own.push_back(workspace);
    p.packs = batch, p.sequences = 1;
    p.q_rows = p.max_q = rows, p.k_rows = p.max_k = keys;
    p.heads = heads, p.kv_heads = kv_heads, p.group = heads / kv_heads, p.dim = p.dim_v = dim;
    p.causal = causal, p.window_left = p.window_right = -1;
    p.scale = 1.0f / std::sqrt(static_cast<float>(dim)), p.dropout_scale = 1.0f;
    p.vector_q = p.vector_v = 1;
    p.lse_head_stride = rows, p.lse_row_stride = 1;
  }
  ~Buffers() { for (void* x : own) CHECK(cudaFree(x)); }
};
bool fits(const Variant& v, int f) { const int t = v.plan.tile->features; return t == kAllFeatures || t == f || (t == 64 && f == 1) || (t == 128 && f == 4); }
std::vector<Variant> all() {
  std::vector<Variant> v;
#define V(id, label, w) { static HopperKernel k; ::id(&k); Variant x; x.name = label; x.kernel = k; static HopperTile t = k.tile; x.plan.tile = &t; x.waves = w; v.push_back(x); }
#include LIST
#undef V
  return v;
}
std::vector<Variant> of_dim(int dim, bool features) {
  std::vector<Variant> v;
  const char *only = std::getenv("ONLY"), *kinds = std::getenv("KINDS");
  for (auto& x : all()) if (x.plan.tile->dim == dim && (x.plan.tile->features != 0) == features && !(only && features && !std::strstr(only, ("," + x.name + ",").c_str())) && !(kinds && features && !std::strstr(kinds, ("," + std::to_string(x.plan.tile->features) + ",").c_str()))) v.push_back(x);
  return v;
}
// What served a cell before.
const HopperTile* usual_tile(int dim, bool causal, int keys) {
  return choose_hopper_tile(false, dim, dim, causal, keys);
}
int sms() { int n = 0; CHECK(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, 0)); return n; }
void launch(const Variant& v, const Buffers& b) {
  const ForwardParams& p = b.p;
  const HopperTile& tile = *v.plan.tile;
  static const int n_sms = sms();
  const int key_box = tile.n;
  HopperForwardParams params = {};
  params.problem = p;
  if (v.name.substr(0, 3) == "odl") params.problem.dropout_threshold <<= 17;
  params.order = tile_order(p, v.plan, n_sms, reinterpret_cast<int*>(b.workspace));
  params.few = few_tiles(p, v.plan, b.workspace + kHopperWorkspaceBytes);
  CHECK(encode_queries({&v.kernel, v.plan}, p, &params.query));
  CHECK(encode_tensor_map(kOwn, p.key, p.packs, p.k_rows, p.kv_heads, p.dim, key_box, panel_columns(tile.dim), &params.key));
  CHECK(encode_tensor_map(kOwn, p.value, p.packs, p.k_rows, p.kv_heads, p.dim_v, key_box, panel_columns(tile.dim_v), &params.value));
  CHECK(encode_tensor_map(kOwn, p.out, p.packs, p.q_rows, p.heads, p.dim_v, 16, panel_columns(tile.dim_v), &params.out));
#ifdef NEWCAP
  if (tile.features == kBoundedCap) params.cap = cap_exponents(p);
#endif
  if (tile.features == kBias || tile.features == 128 || tile.features == 32) CHECK(encode_bias(p, tile, &params.bias));
  if (params.order.counter && v.name[0] == 'w') clear_counter<<<1, 32>>>(params.order.counter);
  else if (params.order.counter) CHECK(cudaMemsetAsync(params.order.counter, 0, 4));
  CHECK(v.kernel.launch(params, static_cast<int>(std::min<int64_t>(v.plan.total(p), n_sms * tile.ctas())), 0));
}
double* g_sums; T* g_first; char* g_flush;

std::map<std::string, std::pair<double, double>> g_worst;
void check(const Variant& v, const Buffers& b, const char* what) {
  CHECK(v.kernel.prepare());
  CHECK(cudaMemset(b.p.out, 0xff, b.elements * 2));
  CHECK(cudaMemset(b.p.lse, 0xff, b.elements / b.p.dim * 4));
  launch(v, b);
  if (b.p.dropout_seed && v.name.substr(0, 3) == "odl") return;
  CHECK(cudaMemset(g_sums, 0, 24));
  const int64_t lines = int64_t{b.p.packs} * b.p.heads * b.p.q_rows;
  const int step = std::max<int64_t>(1, lines / 600) | 1;
  CHECK(cudaFuncSetAttribute(reference, cudaFuncAttributeMaxDynamicSharedMemorySize, 200000));
  reference<<<(lines + step - 1) / step, 128, b.p.k_rows * 4>>>(b.p, step, g_sums);
  double s[3];
  CHECK(cudaMemcpy(s, g_sums, 24, cudaMemcpyDeviceToHost));
  const double e = std::sqrt(s[0] / s[1]);
  auto& worst = g_worst[v.name + (b.p.soft_cap > 0 ? " cap" : b.p.alibi_slopes ? " alibi" : b.p.dropout_seed ? " dropout" : b.p.bias.row_stride ? " bias" : " row")];
  worst.first = std::max(worst.first, e), worst.second = std::max(worst.second, s[2]);
  const bool ok = e < 6e-3 && s[2] < 2e-3;
  if (!ok || std::getenv("VERBOSE")) std::printf("  %s %-28s %s: error %.1e LSE %.1e\n", ok ? "ok" : "WRONG", v.name.c_str(), what, e, s[2]);
}
void table(const char* title, const Buffers& b, const std::vector<Variant>& variants, int repeats, bool verify) {
  const ForwardParams& p = b.p;
  const double flops = 4.0 * p.q_rows * p.k_rows * p.dim * p.heads * p.packs / (p.causal ? 2 : 1);
  std::vector<std::vector<float>> times(variants.size());
  std::vector<double> error(variants.size());
  cudaEvent_t e0, e1;
  CHECK(cudaEventCreate(&e0)); CHECK(cudaEventCreate(&e1));
  for (int r = -2; r < repeats; ++r)
    for (size_t k = 0; k < variants.size(); ++k) {
      const size_t i = r < 0 ? k : (k + r) % variants.size();
      if (r == -2) {
        CHECK(variants[i].kernel.prepare());
        if (verify) check(variants[i], b, title);
        CHECK(cudaMemset(b.p.out, 0xff, b.elements * 2));
        launch(variants[i], b);
        if (i == 0) CHECK(cudaMemcpy(g_first, b.p.out, b.elements * 2, cudaMemcpyDeviceToDevice));
        CHECK(cudaMemset(g_sums, 0, 16));
        compare<<<264, 256>>>(static_cast<const T*>(b.p.out), g_first, b.elements, g_sums);
        double s[2];
        CHECK(cudaMemcpy(s, g_sums, 16, cudaMemcpyDeviceToHost));
        error[i] = std::sqrt(s[0] / s[1]);
        continue;
      }
      CHECK(cudaMemsetAsync(g_flush, r, 256 << 20));
      CHECK(cudaEventRecord(e0));
      launch(variants[i], b);
      CHECK(cudaEventRecord(e1));
      CHECK(cudaEventSynchronize(e1));
      float ms;
      CHECK(cudaEventElapsedTime(&ms, e0, e1));
      if (r >= 0) times[i].push_back(ms * 1000);
    }
  std::printf("%s:", title);
  double base = 0;
  for (size_t i = 0; i < variants.size(); ++i) {
    std::sort(times[i].begin(), times[i].end());
    const double us = times[i][times[i].size() / 2];
    if (i == 0) base = us;
    std::printf(" | %s %.1f us %.0f TF x%.3f%s", variants[i].name.c_str(), us, flops / us * 1e-6, base / us, error[i] == 0 ? "" : error[i] < 5e-3 ? " ~" : " WRONG");
  }
  std::printf("\n");
  std::fflush(stdout);
}
void cells(int dim, const char* only, int least, int most, int repeats, bool verify) {
  for (bool causal : {true, false})
    for (int s = least; s <= most; s *= 2) {
      const Buffers b(16384 / s, s, s, 2048 / dim, 2048 / dim, dim, causal);
      std::vector<Variant> v = of_dim(dim, false);
      char title[64];
      std::snprintf(title, sizeof title, "D%d %s %d", dim, causal ? "causal" : "full", s);
      std::vector<Variant> use;
      const HopperTile* usual = usual_tile(dim, causal, s);
      for (auto& x : v) if (x.name[0] == '*' && *x.plan.tile == *usual) use.push_back(x);  // what serves this cell comes first
      for (auto& x : v) if (x.name[0] != '*' && !(causal && x.name[0] == 'm') && std::strstr(only, x.name.substr(0, x.name.find(' ')).c_str())) use.push_back(x);
      table(title, b, use, s > 4096 ? (repeats + 1) / 2 : repeats, verify);
    }
}
void features(int dim, int s, int repeats) {
  std::vector<Variant> f = of_dim(dim, true), plain = of_dim(dim, false);
  for (bool causal : {true, false}) {
    Buffers b(16384 / s, s, s, 2048 / dim, 2048 / dim, dim, causal);
    const ForwardParams p0 = b.p;
    const HopperTile* usual = usual_tile(dim, causal, s);
    Variant base;
    for (auto& x : plain) if (x.name[0] == '*' && *x.plan.tile == *usual) base = x;
    std::vector<float> slopes(p0.heads, 0.01f);
    float* d_slopes; for (int i = 0; i < p0.heads; ++i) slopes[i] = exp2f(-8.0f * (i + 1) / p0.heads); CHECK(cudaMalloc(&d_slopes, 4 * slopes.size()));
    CHECK(cudaMemcpy(d_slopes, slopes.data(), 4 * slopes.size(), cudaMemcpyHostToDevice));
    T* bias = b.random(int64_t{s} * s, 9);
    Other* bias16; CHECK(cudaMalloc(&bias16, int64_t{s} * s * 2)); b.own.push_back(bias16);
    to_half<<<512, 256>>>(bias, bias16, int64_t{s} * s);
    float* bias32; CHECK(cudaMalloc(&bias32, int64_t{s} * s * 4)); b.own.push_back(bias32);
    to_float<<<512, 256>>>(bias, bias32, int64_t{s} * s);
    std::vector<uint4> seeds(p0.heads * p0.packs, uint4{1, 2, 3, 4});
    uint4* d_seeds; CHECK(cudaMalloc(&d_seeds, 16 * seeds.size()));
    CHECK(cudaMemcpy(d_seeds, seeds.data(), 16 * seeds.size(), cudaMemcpyHostToDevice));
    cudaEvent_t e0, e1;
    CHECK(cudaEventCreate(&e0)); CHECK(cudaEventCreate(&e1));
    struct One { std::string name; Variant v; ForwardParams p; std::vector<float> t; };
    std::vector<One> ones;
    ones.push_back({"plain", base, p0, {}});
    for (auto& x : f) {
      auto add = [&](const char* n, auto change) { ForwardParams p = p0; change(p);
        const int f = (p.soft_cap > 0) * 1 + (p.alibi_slopes != nullptr) * 2 + (p.bias.type != BiasType::kNone) * (p.bias.row_stride ? (p.bias.type == BiasType::kF32 ? 32 : 4) : 16) + (p.dropout_seed != nullptr) * 8;
        if (!fits(x, f)) return; ones.push_back({x.name + " " + n, x, p, {}}); };
      add("none", [](auto&) {});
      add("cap", [](auto& p) { p.soft_cap = 30.0f; });
      add("alibi", [&](auto& p) { p.alibi_slopes = d_slopes; });
      add("bias", [&](auto& p) { p.bias.data = bias; p.bias.type = kOwnBias; p.bias.row_stride = s; p.bias.rows = p.bias.keys = s; });
      add("row", [&](auto& p) { p.bias.data = bias; p.bias.type = kOwnBias; p.bias.row_stride = 0; p.bias.rows = p.bias.keys = s; });
      add("rowf32", [&](auto& p) { p.bias.data = bias32; p.bias.type = BiasType::kF32; p.bias.row_stride = 0; p.bias.rows = p.bias.keys = s; });
      add("biasf32", [&](auto& p) { p.bias.data = bias32; p.bias.type = BiasType::kF32; p.bias.row_stride = s; p.bias.rows = p.bias.keys = s; });
      if (std::getenv("COMBINED")) add("bias f16", [&](auto& p) { p.bias.data = bias16; p.bias.type = kOtherBias; p.bias.row_stride = s; p.bias.rows = p.bias.keys = s; });
      if (std::getenv("COMBINED")) add("all", [&](auto& p) { p.bias.data = bias; p.bias.type = kOwnBias; p.bias.row_stride = s; p.bias.rows = p.bias.keys = s; p.soft_cap = 20.0f; p.alibi_slopes = d_slopes; });
      add("dropout", [&](auto& p) { p.dropout_seed = d_seeds; p.dropout_threshold = 3277; p.dropout_scale = 32768.0 / (32768 - 3277); });
    }
    for (int r = -1; r < repeats; ++r)
      for (size_t k = 0; k < ones.size(); ++k) {
        auto& o = ones[r < 0 ? k : (k + r * 3) % ones.size()];
        b.p = o.p;
        if (r < 0) {
          CHECK(o.v.kernel.prepare());
          check(o.v, b, o.name.c_str());
        }
        CHECK(cudaMemsetAsync(g_flush, r, 256 << 20));
        CHECK(cudaEventRecord(e0));
        launch(o.v, b);
        CHECK(cudaEventRecord(e1));
        CHECK(cudaEventSynchronize(e1));
        float ms; CHECK(cudaEventElapsedTime(&ms, e0, e1));
        if (r >= 0) o.t.push_back(ms * 1000);
      }
    std::sort(ones[0].t.begin(), ones[0].t.end());
    std::printf("features D%d %s %d (of plain %.0f us):", dim, causal ? "causal" : "full", s, ones[0].t[ones[0].t.size() / 2]);
    for (const char* what : {"none", "alibi", "cap", "dropout", "bias", "row", "rowf32", "biasf32", "bias f16", "all"}) {
      std::printf("\n   %-8s", what);
      for (auto& o : ones) {
        if (o.name.size() <= std::strlen(what) || o.name.substr(o.name.find(' ') + 1) != what) continue;
        std::sort(o.t.begin(), o.t.end()); const double us = o.t[o.t.size() / 2], u0 = ones[0].t[ones[0].t.size() / 2]; std::printf(" | %s %.0f x%.3f", o.name.substr(0, o.name.find(' ')).c_str(), us, us / u0); }
    }
    std::printf("\n"); std::fflush(stdout);
    b.p = p0;
    CHECK(cudaFree(d_slopes)); CHECK(cudaFree(d_seeds));
  }
}
__global__ void ramp(T* k, int64_t n, int keys, int row, float amp, int step) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    const int j = i / row % keys;
    const float f = step == 0 ? amp * (1.0f - float(j) / keys) : (j % step == 5 ? amp : 0.1f);
    k[i] = T(float(k[i]) * f);
  }
}
// Large logits and such that grow as blocks are visited, lengths that are no multiples, groups, lengths of keys, windows.
void stress(int dim) {
  struct Case { const char* name; int b, s, k, h, hk; bool causal; float scale, amp; int step; int len, window; };
  const Case cases[] = {
      {"plain", 2, 1000, 1000, 4, 4, true, 1, 0, 0, 0, -1}, {"plain full", 2, 1000, 1531, 4, 4, false, 1, 0, 0, 0, -1},
      {"scale 8", 2, 1024, 1024, 4, 2, true, 8, 0, 0, 0, -1}, {"scale 8 full", 1, 777, 2048, 4, 4, false, 8, 0, 0, 0, -1},
      {"scale 60", 1, 1024, 1024, 4, 4, true, 60, 0, 0, 0, -1}, {"scale 400 full", 1, 640, 1024, 4, 4, false, 400, 0, 0, 0, -1},
      {"ramp 6", 1, 1024, 2048, 4, 1, true, 1, 6, 0, 0, -1}, {"ramp 30", 1, 1024, 2048, 4, 4, false, 1, 30, 0, 0, -1},
      {"ramp 15", 1, 1024, 2048, 4, 4, true, 1, 15, 0, 0, -1}, {"ramp 9 full", 1, 1024, 2048, 4, 4, false, 1, 9, 0, 0, -1},
      {"spikes 12", 1, 1024, 2048, 4, 4, true, 1, 12, 400, 0, -1}, {"spikes 20 full", 1, 1024, 2048, 4, 4, false, 1, 20, 700, 0, -1},
      {"lengths", 3, 500, 900, 4, 2, false, 1, 0, 0, 333, -1}, {"lengths causal", 3, 900, 900, 4, 2, true, 1, 0, 0, 640, -1},
      {"window", 1, 2048, 2048, 4, 2, true, 1, 0, 0, 0, 300}, {"more rows than keys", 1, 1024, 600, 4, 4, true, 1, 0, 0, 0, -1}};
  int wrong = 0, done = 0;
  for (const Case& c : cases) {
    Buffers b(c.b, c.s, c.k, c.h, c.hk, dim, c.causal);
    b.p.scale *= c.scale;
    b.p.window_left = c.window;
    const int64_t n = int64_t{c.b} * c.k * c.hk * dim;
    if (c.amp) ramp<<<512, 256>>>((T*)b.p.key, n, c.k, c.hk * dim, c.amp, c.step);
    std::vector<int> lens(c.b, c.len);
    if (c.len) {
      for (int i = 0; i < c.b; ++i) lens[i] = c.len + 77 * i;
      int* d; CHECK(cudaMalloc(&d, 4 * c.b)); b.own.push_back(d);
      CHECK(cudaMemcpy(d, lens.data(), 4 * c.b, cudaMemcpyHostToDevice));
      b.p.kv_lengths = d;
    }
    for (auto& v : of_dim(dim, false)) {
      if (v.name[0] == 'm' || v.name[0] == 'p') continue;
      check(v, b, c.name);
      std::vector<T> x(b.elements), y(b.elements);
      CHECK(cudaMemcpy(x.data(), b.p.out, b.elements * 2, cudaMemcpyDeviceToHost));
      for (int r = 0; r < 3; ++r) {
        launch(v, b);
        CHECK(cudaMemcpy(y.data(), b.p.out, b.elements * 2, cudaMemcpyDeviceToHost));
        if (std::memcmp(x.data(), y.data(), b.elements * 2)) { ++wrong; std::printf("  NOT REPEATED %s %s\n", v.name.c_str(), c.name); break; }
      }
      ++done;
    }
  }
  for (bool causal : {false, true}) {  // narrower than the tile
    Buffers b(1, 700, 1100, 4, 2, dim - 8, causal);
    for (auto& v : of_dim(dim, false)) { check(v, b, "narrow"); ++done; }
  }
  for (bool causal : {false, true}) {  // packed sequences, query lengths; against the first of the same blocks, to the bit
    Buffers b(1, 3000, 3000, 4, 2, dim, causal);
    const std::vector<int> cu = {0, 77, 77, 1300, 2000, 2950}, ql = {70, 0, 1223, 650, 950}, kl = {77, 0, 1200, 700, 333};
    int* d[3];
    int k = 0;
    for (const auto* x : {&cu, &ql, &kl}) { CHECK(cudaMalloc(&d[k], 4 * x->size())); b.own.push_back(d[k]); CHECK(cudaMemcpy(d[k], x->data(), 4 * x->size(), cudaMemcpyHostToDevice)); ++k; }
    b.p.sequences = 5, b.p.max_q = b.p.max_k = 1300;
    b.p.cu_seqlens_q = b.p.cu_seqlens_k = d[0]; b.p.query_lengths = d[1]; b.p.kv_lengths = d[2];
    std::vector<std::pair<int, std::vector<T>>> firsts;
    std::vector<float> lse(b.elements / dim);
    std::vector<std::vector<float>> lses;
    for (auto& v : of_dim(dim, false)) {
      if (v.name[0] == 'm' || v.name[0] == 'p') continue;
      CHECK(v.kernel.prepare());
      CHECK(cudaMemset(b.p.out, 0xff, b.elements * 2)); CHECK(cudaMemset(b.p.lse, 0xff, lse.size() * 4));
      launch(v, b);
      std::vector<T> x(b.elements);
      CHECK(cudaMemcpy(x.data(), b.p.out, b.elements * 2, cudaMemcpyDeviceToHost));
      CHECK(cudaMemcpy(lse.data(), b.p.lse, lse.size() * 4, cudaMemcpyDeviceToHost));
      bool found = false;
      for (size_t i = 0; i < firsts.size(); ++i)
        if (firsts[i].first == v.plan.tile->n) {
          found = true;
          if (std::memcmp(x.data(), firsts[i].second.data(), b.elements * 2) || std::memcmp(lse.data(), lses[i].data(), lse.size() * 4)) std::printf("  DIFFERENT packed %s\n", v.name.c_str());
        }
      if (!found) firsts.push_back({v.plan.tile->n, x}), lses.push_back(lse);
      ++done;
    }
  }
  std::printf("stress D%d: %d done, %d not repeated\n", dim, done, wrong);
}
// Every feature at awkward sizes, with windows, lengths, groups, biases of heads and batch entries; repeated.
void stress_features(int dim) {
  struct Case { const char* name; int b, s, k, h, hk; bool causal; float scale; int len, window; };
  const Case cases[] = {{"causal", 2, 1000, 1000, 4, 4, true, 1, 0, -1}, {"full", 2, 1000, 1536, 4, 4, false, 1, 0, -1}, {"full more rows", 1, 1333, 704, 4, 2, false, 1, 0, -1},
      {"causal more keys", 1, 700, 2048, 4, 1, true, 1, 0, -1}, {"scale 8", 1, 640, 1024, 4, 4, true, 8, 0, -1}, {"lengths", 3, 500, 904, 4, 2, false, 1, 333, -1},
      {"lengths causal", 3, 900, 904, 4, 2, true, 1, 640, -1}, {"window", 1, 2048, 2048, 4, 2, true, 1, 0, 300}, {"more rows than keys", 1, 1024, 600, 4, 4, true, 1, 0, -1}};
  int wrong = 0, done = 0;
  for (const Case& c : cases) {
    Buffers b(c.b, c.s, c.k, c.h, c.hk, dim, c.causal);
    b.p.scale *= c.scale;
    b.p.window_left = c.window;
    std::vector<int> lens(c.b, c.len);
    if (c.len) {
      for (int i = 0; i < c.b; ++i) lens[i] = c.len + 77 * i;
      int* d; CHECK(cudaMalloc(&d, 4 * c.b)); b.own.push_back(d);
      CHECK(cudaMemcpy(d, lens.data(), 4 * c.b, cudaMemcpyHostToDevice));
      b.p.kv_lengths = d;
    }
    const ForwardParams p0 = b.p;
    std::vector<float> slopes = {0.3f, 0.02f, 0.001f, 0.0f};
    float* d_slopes; CHECK(cudaMalloc(&d_slopes, 16)); b.own.push_back(d_slopes);
    CHECK(cudaMemcpy(d_slopes, slopes.data(), 16, cudaMemcpyHostToDevice));
    const int64_t plane = int64_t{c.s} * c.k;
    T* bias = b.random(plane * c.h * c.b, 9);
    Other* bias16; CHECK(cudaMalloc(&bias16, plane * c.h * c.b * 2)); b.own.push_back(bias16);
    to_half<<<512, 256>>>(bias, bias16, plane * c.h * c.b);
    float* bias32; CHECK(cudaMalloc(&bias32, plane * c.h * c.b * 4)); b.own.push_back(bias32);
    uint8_t* mask; CHECK(cudaMalloc(&mask, plane)); b.own.push_back(mask);
    to_float<<<512, 256>>>(bias, bias32, plane * c.h * c.b); to_mask<<<512, 256>>>(bias, mask, plane);
    T* biasinf = b.random(plane, 9); float* bias32inf; CHECK(cudaMalloc(&bias32inf, plane * 4)); b.own.push_back(bias32inf);
    to_inf<<<512, 256>>>(biasinf, plane, c.k); to_float<<<512, 256>>>(biasinf, bias32inf, plane);
    std::vector<uint4> seeds; for (int i = 0; i < c.b * c.h; ++i) seeds.push_back(uint4{77, 123456789, uint32_t(i % c.h), uint32_t(i / c.h)});
    uint4* d_seeds; CHECK(cudaMalloc(&d_seeds, 16 * seeds.size())); b.own.push_back(d_seeds);
    CHECK(cudaMemcpy(d_seeds, seeds.data(), 16 * seeds.size(), cudaMemcpyHostToDevice));
    for (auto& v : of_dim(dim, true)) for (int f = 0; f < 21; ++f) {
      b.p = p0;
      const int kind[] = {1, 1, 2, 4, 4, 4, 4, 8, 8, 8, 8, 16, 16, 16, 16, 16, 32, 32, 4, 32, 1};
      const char* names[] = {"cap 30", "cap 2", "alibi", "bias", "bias f16 heads", "bias batch", "bias both", "dropout .1", "dropout .9", "dropout 0", "dropout .001", "row", "row f16 heads", "row f32 both", "row mask batch", "row f32", "bias f32", "bias f32 both", "bias inf", "bias f32 inf", "cap 50"};
      if (!fits(v, kind[f]) || (v.plan.tile->features == 128 && f == 4)) continue;
      if (f < 2) b.p.soft_cap = f ? 2.0f : 30.0f;
      if (f == 20) b.p.soft_cap = 50.0f;
      if (f == 2) b.p.alibi_slopes = d_slopes;
      if (kind[f] == 4 || kind[f] == 32) {
        b.p.bias.data = f == 4 ? (void*)bias16 : bias; b.p.bias.type = f == 4 ? kOtherBias : kOwnBias; b.p.bias.row_stride = c.k;
        if (f == 4) b.p.bias.head_stride = plane;
        if (f == 5) b.p.bias.sequence_stride = plane;
        if (f == 6) b.p.bias.head_stride = plane, b.p.bias.sequence_stride = plane * c.h;
        b.p.bias.rows = c.s, b.p.bias.keys = c.k;
        if (f == 18) b.p.bias.data = biasinf;
      }
      if (kind[f] == 8) { const double rate = f == 7 ? .1 : f == 8 ? .9 : f == 10 ? .001 : 0; b.p.dropout_seed = d_seeds; b.p.dropout_threshold = uint32_t(rate * 32768 + .5); b.p.dropout_scale = 32768.0 / (32768 - b.p.dropout_threshold); }
      if (kind[f] == 16) {
        b.p.bias = {}; b.p.bias.rows = c.s, b.p.bias.keys = c.k;
        b.p.bias.data = f == 11 ? (void*)(bias + 1) : f == 12 ? (void*)(bias16 + 3) : f == 14 ? (void*)mask : (void*)(bias32 + 1);
        b.p.bias.type = f == 11 ? kOwnBias : f == 12 ? kOtherBias : f == 14 ? BiasType::kMask : BiasType::kF32;
        if (f == 12 || f == 13) b.p.bias.head_stride = c.k;
        if (f == 13 || f == 14) b.p.bias.sequence_stride = f == 13 ? c.k * c.h : c.k;
      }
      if (f >= 16 && f != 18 && f != 20) { b.p.bias.data = f == 19 ? bias32inf : bias32, b.p.bias.type = BiasType::kF32; if (f == 17) b.p.bias.head_stride = plane, b.p.bias.sequence_stride = plane * c.h; else b.p.bias.head_stride = b.p.bias.sequence_stride = 0; }
      const std::string what = std::string(c.name) + " " + names[f];
      check(v, b, what.c_str());
      std::vector<T> x(b.elements), y(b.elements);
      CHECK(cudaMemcpy(x.data(), b.p.out, b.elements * 2, cudaMemcpyDeviceToHost));
      for (int r = 0; r < 2; ++r) {
        launch(v, b);
        CHECK(cudaMemcpy(y.data(), b.p.out, b.elements * 2, cudaMemcpyDeviceToHost));
        if (std::memcmp(x.data(), y.data(), b.elements * 2)) { ++wrong; std::printf("  NOT REPEATED %s %s\n", v.name.c_str(), what.c_str()); break; }
      }
      ++done;
    }
    b.p = p0;
  }
  std::printf("stress of features D%d: %d done, %d not repeated;", dim, done, wrong);
  for (auto& w : g_worst) std::printf(" %s %.1e LSE %.1e", w.first.c_str(), w.second.first, w.second.second);
  std::printf("\n");
}
__global__ void louder(T* x, int64_t n, int row, int begin, int end, float by) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x)
    if (i / row < begin || i / row >= end) x[i] = T(float(x[i]) * by);
}
// Whether a packed sequence's bits depend on its neighbours.
void alone(int dim) {
  for (auto& v : of_dim(dim, true)) if (fits(v, 1)) {
    Buffers b(1, 3000, 3000, 4, 2, dim, false);
    const std::vector<int> cu = {0, 77, 77, 1300, 2000, 2950};
    int* d; CHECK(cudaMalloc(&d, 4 * cu.size())); b.own.push_back(d); CHECK(cudaMemcpy(d, cu.data(), 4 * cu.size(), cudaMemcpyHostToDevice));
    b.p.sequences = 5, b.p.max_q = b.p.max_k = 1300; b.p.cu_seqlens_q = b.p.cu_seqlens_k = d; b.p.soft_cap = 7.0f;
    std::vector<T> x(b.elements), y(b.elements);
    CHECK(v.kernel.prepare());
    launch(v, b); CHECK(cudaMemcpy(x.data(), b.p.out, b.elements * 2, cudaMemcpyDeviceToHost));
    louder<<<512, 256>>>((T*)b.p.query, b.elements, 4 * dim, 1300, 2000, 9.0f);
    louder<<<512, 256>>>((T*)b.p.key, b.elements / 2, 2 * dim, 1300, 2000, 9.0f);
    launch(v, b); CHECK(cudaMemcpy(y.data(), b.p.out, b.elements * 2, cudaMemcpyDeviceToHost));
    const size_t at = size_t(1300) * 4 * dim, n = size_t(700) * 4 * dim;
    std::printf("%s of its neighbours %s\n", v.name.c_str(), std::memcmp(&x[at], &y[at], n * 2) ? "DEPENDS" : "independent");
  }
}
// Calls of every shape: single features against the kernel for all of them.
void against(int tile_dim) {
  int done = 0, wrong = 0;
  double worst = 0, worst_lse = 0;
  for (int shape = 0; shape < 8; ++shape) {
    const int dim = shape == 1 ? tile_dim - 24 : tile_dim, H = 4, HK = shape % 2 ? 2 : 4;
    const bool packed = shape == 2 || shape == 3, causal = shape % 2 == 0;
    const int rows = packed ? 3000 : 1000, keys = packed ? 3000 : 1304;
    Buffers b(packed ? 1 : 2, rows, keys, H, HK, dim, causal);
    ForwardParams p0 = b.p;
    auto ints = [&](std::vector<int> x) { int* d; CHECK(cudaMalloc(&d, 4 * x.size())); b.own.push_back(d); CHECK(cudaMemcpy(d, x.data(), 4 * x.size(), cudaMemcpyHostToDevice)); return d; };
    auto floats = [&](std::vector<float> x) { float* d; CHECK(cudaMalloc(&d, 4 * x.size())); b.own.push_back(d); CHECK(cudaMemcpy(d, x.data(), 4 * x.size(), cudaMemcpyHostToDevice)); return d; };
    const int sequences = packed ? 5 : 2, longest = 1224;
    if (packed) {
      p0.sequences = 5, p0.max_q = p0.max_k = longest;
      p0.cu_seqlens_q = p0.cu_seqlens_k = ints({0, 77, 77, 1300, 2000, 2950});
      if (shape == 3) p0.query_lengths = ints({70, 0, 1223, 650, 950}), p0.kv_lengths = ints({77, 0, 1200, 700, 333});
    } else if (shape == 4) {
      p0.window_left = 200, p0.sink_tokens = 7;
    } else if (shape == 5) {
      p0.window_left = 150, p0.window_right = 90; p0.top_left = 1;
    } else if (shape == 6) {
      p0.kv_lengths = ints({1300, 301}); p0.query_lengths = ints({1000, 999}); p0.top_left = 1;
      std::vector<T> nan(100 * HK * dim, T(NAN));  // rows past the second sequence's end
      CHECK(cudaMemcpy((T*)p0.value + (int64_t{keys} + 301) * HK * dim, nan.data(), nan.size() * 2, cudaMemcpyHostToDevice));
      CHECK(cudaMemcpy((T*)p0.key + (int64_t{keys} + 301) * HK * dim, nan.data(), nan.size() * 2, cudaMemcpyHostToDevice));
    } else if (shape == 7) {
      std::vector<int> q(2 * rows), k(2 * keys);
      for (int i = 0; i < 2 * rows; ++i) q[i] = i % rows / 300;
      for (int i = 0; i < 2 * keys; ++i) k[i] = i % keys / 333;
      p0.query_segments = ints(q), p0.kv_segments = ints(k);
      std::vector<int> qr, kr;
      for (int e = 0; e < 2; ++e) {
        for (int i = 0; i < rows; i += 64) qr.push_back(q[i]), qr.push_back(q[std::min(i + 63, rows - 1)]);
        for (int i = 0; i < keys; i += 64) kr.push_back(k[i]), kr.push_back(k[std::min(i + 63, keys - 1)]);
      }
      p0.query_segment_range = (const int2*)ints(qr), p0.kv_segment_range = (const int2*)ints(kr);
    }
    if (shape % 3 == 1) p0.sinks = floats({1, -1, 2, 0}), p0.sinks_stride = 0;
    float* slopes = floats({0.3f, 0.02f, 0.001f, -0.01f, 0.1f, 0.2f, 0.3f, 0.4f, .5f, .6f, .7f, .8f, .01f, .02f, .03f, .04f, .05f, .06f, .07f, .08f});
    const int bias_rows = packed ? longest : rows, bias_keys = packed ? longest : keys;
    const int64_t plane = int64_t{bias_rows} * bias_keys;
    T* bias = b.random(plane * H * sequences, 9);
    float* bias32; CHECK(cudaMalloc(&bias32, plane * H * sequences * 4)); b.own.push_back(bias32);
    to_float<<<512, 256>>>(bias, bias32, plane * H * sequences);
    std::vector<uint4> seeds; for (int i = 0; i < sequences * H; ++i) seeds.push_back(uint4{77, 123456789, uint32_t(i % H), uint32_t(i / H)});
    uint4* d_seeds; CHECK(cudaMalloc(&d_seeds, 16 * seeds.size())); b.own.push_back(d_seeds);
    CHECK(cudaMemcpy(d_seeds, seeds.data(), 16 * seeds.size(), cudaMemcpyHostToDevice));
    for (int f : {1, 2, 4, 8, 16, 32}) {
      std::vector<T> first, out(b.elements);
      std::vector<float> first_lse, lse(b.elements / dim);
      for (auto& v : of_dim(tile_dim, true)) {
        if (!fits(v, f) || (v.plan.tile->features == 128 && dim != 64)) continue;
        b.p = p0;
        if (f == 1) b.p.soft_cap = 3.0f;
        if (f == 2) b.p.alibi_slopes = slopes, b.p.alibi_stride = packed ? H : 0;
        if (f == 4) { b.p.bias.data = bias, b.p.bias.type = kOwnBias, b.p.bias.row_stride = bias_keys, b.p.bias.rows = bias_rows, b.p.bias.keys = bias_keys, b.p.bias.head_stride = plane, b.p.bias.sequence_stride = plane * H; }
        if (f == 8 && v.name.substr(0, 3) == "odl") continue;
        if (f == 32) { b.p.bias.data = bias32, b.p.bias.type = BiasType::kF32, b.p.bias.row_stride = bias_keys, b.p.bias.rows = bias_rows, b.p.bias.keys = bias_keys, b.p.bias.head_stride = plane, b.p.bias.sequence_stride = plane * H; }
        if (f == 16) { b.p.bias.data = bias + 1, b.p.bias.type = kOwnBias, b.p.bias.row_stride = 0, b.p.bias.rows = bias_rows, b.p.bias.keys = bias_keys, b.p.bias.head_stride = bias_keys, b.p.bias.sequence_stride = bias_keys * H; }
        if (f == 8) b.p.dropout_seed = d_seeds, b.p.dropout_threshold = 1u << 13, b.p.dropout_scale = 4.0f / 3.0f;
        CHECK(v.kernel.prepare());
        CHECK(cudaMemset(b.p.out, 0, b.elements * 2)); CHECK(cudaMemset(b.p.lse, 0, lse.size() * 4));
        launch(v, b);
        CHECK(cudaMemcpy(out.data(), b.p.out, b.elements * 2, cudaMemcpyDeviceToHost));
        CHECK(cudaMemcpy(lse.data(), b.p.lse, lse.size() * 4, cudaMemcpyDeviceToHost));
        if (first.empty()) { first = out, first_lse = lse; continue; }
        double up = 0, down = 0, l = 0; int odd = 0;
        for (size_t i = 0; i < out.size(); ++i) { const double x = float(out[i]), y = float(first[i]); if (!(std::isfinite(x) && std::isfinite(y))) { ++odd; continue; } up += (x - y) * (x - y), down += y * y; }
        for (size_t i = 0; i < lse.size(); ++i) { if (std::isinf(lse[i]) && lse[i] == first_lse[i]) continue; const double d = std::fabs(lse[i] - first_lse[i]); if (!(d <= l)) l = d; }
        const double e = std::sqrt(up / down);
        worst = std::max(worst, e), worst_lse = std::max(worst_lse, l);
        ++done;
        if (!(e < 5e-3) || !(l < 2e-3) || odd) { ++wrong; std::printf("  WRONG against: shape %d feature %d %s: %.1e LSE %.1e, %d not finite\n", shape, f, v.name.c_str(), e, l, odd); }
      }
    }
    b.p = p0;
  }
  std::printf("against the kernel for all, D%d: %d done, %d wrong, worst %.1e LSE %.1e\n", tile_dim, done, wrong, worst, worst_lse);
}
int main_(int n, char** a) {
  CHECK(cudaMalloc(&g_flush, 256 << 20)); CHECK(cudaMalloc(&g_first, 80 << 20)); CHECK(cudaMalloc(&g_sums, 64));
  const std::string mode = a[1];
  if (mode == "cells") cells(atoi(a[2]), a[3], atoi(a[4]), atoi(a[5]), atoi(a[6]), atoi(a[7]));
  if (mode == "stress") stress(atoi(a[2]));
  if (mode == "stressf") stress_features(atoi(a[2]));
  if (mode == "against") against(atoi(a[2]));
  if (mode == "alone") alone(atoi(a[2]));
  if (mode == "features") features(atoi(a[2]), atoi(a[3]), atoi(a[4]));
  if (mode == "one") {  // dim length causal label: two launches of it
    const int dim = atoi(a[2]), s = atoi(a[3]);
    const Buffers b(16384 / s, s, s, 2048 / dim, 2048 / dim, dim, atoi(a[4]));
    for (auto& x : of_dim(dim, false)) if (x.name == a[5]) { CHECK(x.kernel.prepare()); for (int r = 0; r < 3; ++r) launch(x, b); CHECK(cudaDeviceSynchronize()); }
  }
  return 0;
}
}
int main(int n, char** a) { return jax_baracuda::main_(n, a); }
