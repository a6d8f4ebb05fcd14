// Forward kernel variants in turns. bench MODE ARGS: see main.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
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
using T = __nv_bfloat16;
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
  const int last = p.causal ? min(len, i + off + 1) : len;
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
    if (p.bias.type == BiasType::kBF16) s += float(((const T*)p.bias.data)[i * p.bias.row_stride + j + h * p.bias.head_stride]);
    if (p.bias.type == BiasType::kF16) s += __half2float(((const __half*)p.bias.data)[i * p.bias.row_stride + j + h * p.bias.head_stride]);
    w[j] = s;
    top = fmaxf(top, s);
  }
  top = sum_all(top, true);
  float sum = 0;
  for (int j = first + threadIdx.x; j < last; j += blockDim.x) sum += w[j] = expf(w[j] - top);
  sum = sum_all(sum, false);
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
__global__ void to_half(const T* x, __half* y, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) y[i] = __float2half(float(x[i]));
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
std::vector<Variant> all() {
  std::vector<Variant> v;
#define V(id, label, w) { static HopperKernel k; ::id(&k); Variant x; x.name = label; x.kernel = k; static HopperTile t = k.tile; x.plan.tile = &t; x.waves = w; v.push_back(x); }
#include LIST
#undef V
  return v;
}
std::vector<Variant> of_dim(int dim, bool features) {
  std::vector<Variant> v;
  static const std::string only = std::getenv("ONLY") ? std::string(" ") + std::getenv("ONLY") + " " : "";
  for (auto& x : all()) if ((only.empty() || only.find(" " + x.name + " ") != std::string::npos) && x.plan.tile->dim == dim && (x.plan.tile->features != 0) == features) v.push_back(x);
  return v;
}
const HopperTile* usual_tile(int dim, bool causal, int keys) { return choose_hopper_tile(0, dim, dim, causal, keys); }
int sms() { int n = 0; CHECK(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, 0)); return n; }
cudaStream_t g_stream = 0;
void launch(const Variant& v, const Buffers& b) {
  const ForwardParams& p = b.p;
  const HopperTile& tile = *v.plan.tile;
  static const int n_sms = sms();
  const int key_box = v.name[0] == 'P' ? tile.n / 2 : tile.n;
  HopperForwardParams params = {};
  params.problem = p;
  params.order = tile_order(p, v.plan, n_sms, reinterpret_cast<int*>(b.workspace));
  params.few = few_tiles(p, v.plan, b.workspace + kHopperWorkspaceBytes);
  CHECK(encode_queries({&v.kernel, v.plan}, p, &params.query));
  CHECK(encode_tensor_map(DType::kBF16, p.key, p.packs, p.k_rows, p.kv_heads, p.dim, key_box, panel_columns(tile.dim), &params.key));
  CHECK(encode_tensor_map(DType::kBF16, p.value, p.packs, p.k_rows, p.kv_heads, p.dim_v, key_box, panel_columns(tile.dim_v), &params.value));
  CHECK(encode_tensor_map(DType::kBF16, p.out, p.packs, p.q_rows, p.heads, p.dim_v, 16, panel_columns(tile.dim_v), &params.out));
  if (v.name.back() == '#') params.order.counter = nullptr;
  if (const char* at = std::strchr(v.name.c_str(), '@')) params.order.section = std::min(std::atoi(at + 1), params.order.rows);
  if (params.order.counter) CHECK(cudaMemsetAsync(params.order.counter, 0, 4, g_stream));
  CHECK(v.kernel.launch(params, static_cast<int>(std::min<int64_t>(v.plan.total(p), n_sms * tile.ctas())), g_stream));
}
double* g_sums; T* g_first; char* g_flush;
void check(const Variant& v, const Buffers& b, const char* what) {
  CHECK(v.kernel.prepare());
  CHECK(cudaMemset(b.p.out, 0xff, b.elements * 2));
  CHECK(cudaMemset(b.p.lse, 0xff, b.elements / b.p.dim * 4));
  launch(v, b);
  CHECK(cudaMemset(g_sums, 0, 24));
  const int64_t lines = int64_t{b.p.packs} * b.p.heads * b.p.q_rows;
  const int step = std::max<int64_t>(1, lines / 600) | 1;
  CHECK(cudaFuncSetAttribute(reference, cudaFuncAttributeMaxDynamicSharedMemorySize, 200000));
  reference<<<(lines + step - 1) / step, 128, b.p.k_rows * 4>>>(b.p, step, g_sums);
  double s[3];
  CHECK(cudaMemcpy(s, g_sums, 24, cudaMemcpyDeviceToHost));
  const double e = std::sqrt(s[0] / s[1]);
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
__global__ void clocks(long long* at) {
  unsigned sm; asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  unsigned long long ns; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  if (threadIdx.x == 0) { at[2 * sm] = clock64(); at[2 * sm + 1] = ns; }
}
// Median of the SMs' clock rates between two marks, MHz.
double rate(const std::vector<long long>& a, const std::vector<long long>& b) {
  std::vector<double> r;
  for (size_t i = 0; i + 1 < a.size(); i += 2) if (a[i] && b[i] && b[i + 1] > a[i + 1]) r.push_back(1e3 * double(b[i] - a[i]) / double(b[i + 1] - a[i + 1]));
  std::sort(r.begin(), r.end());
  return r.empty() ? 0 : r[r.size() / 2];
}
struct Run { double us, mhz; };
// `calls` calls of each variant in a queue, `chunks` marks in between.
std::vector<Run> queue(const Variant& v, const Buffers& b, int calls, int chunks) {
  static long long* marks = nullptr;
  static std::vector<cudaEvent_t> events(64);
  const int kSms = 160;
  if (!marks) { CHECK(cudaMalloc(&marks, 64 * kSms * 16)); for (auto& event : events) CHECK(cudaEventCreate(&event)); }
  CHECK(cudaMemsetAsync(marks, 0, 64 * kSms * 16));
  const auto mark = [&](int i) { clocks<<<528, 1024>>>(marks + i * 2 * kSms); CHECK(cudaEventRecord(events[i])); };
  mark(0);
  for (int c = 0; c < chunks; ++c) { for (int i = 0; i < calls / chunks; ++i) launch(v, b); mark(c + 1); }
  CHECK(cudaDeviceSynchronize());
  std::vector<Run> out;
  std::vector<long long> h(64 * kSms * 2);
  CHECK(cudaMemcpy(h.data(), marks, h.size() * 8, cudaMemcpyDeviceToHost));
  for (int c = 0; c < chunks; ++c) {
    float ms; CHECK(cudaEventElapsedTime(&ms, events[c], events[c + 1]));
    const auto at = [&](int i) { return std::vector<long long>(h.begin() + i * 2 * kSms, h.begin() + (i + 1) * 2 * kSms); };
    out.push_back({ms * 1e3 / (calls / chunks), rate(at(c), at(c + 1))});
  }
  return out;
}
std::vector<Variant> chosen(int dim, bool causal, int s, const char* only) {
  std::vector<Variant> use;
  const std::string list = std::string(" ") + only + " ";
  const HopperTile* usual = usual_tile(dim, causal, s);
  for (auto& x : of_dim(dim, false)) if (x.name[0] == '*' && *x.plan.tile == *usual) use.push_back(x);
  const Variant base = use.empty() ? Variant() : use[0];
  for (auto& x : of_dim(dim, false)) if (x.name[0] != '*' && !(causal && x.name[0] == 'm') && list.find(" " + x.name + " ") != std::string::npos) use.push_back(x);
  for (size_t at = list.find(" @"); at != std::string::npos; at = list.find(" @", at + 1)) {  // other sections of the usual kernel
    Variant x = base; x.name = list.substr(at + 1, list.find(' ', at + 1) - at - 1); use.push_back(x);
  }
  for (auto& x : of_dim(dim, false))  // other sections of a variant, fixed rounds
    for (const std::string key : {" " + x.name + "@", " " + x.name + "#"})
      for (size_t at = list.find(key); at != std::string::npos; at = list.find(key, at + 1)) { Variant y = x; y.name = list.substr(at + 1, list.find(' ', at + 1) - at - 1); use.push_back(y); }
  return use;
}
// Long queues in turns: us a call, MHz, millions of clocks a call.
void queues(int dim, bool causal, int s, const char* only, int ms, int rounds, int chunks, bool verify) {
  const bool gqa = std::getenv("GQA");
  const Buffers b(16384 / s, s, s, (gqa ? 4096 : 2048) / dim, (gqa ? 1024 : 2048) / dim, dim, causal);
  const double flops = 4.0 * s * s * (gqa ? 4096 : 2048) * (16384 / s) / (causal ? 2 : 1);
  const auto use = chosen(dim, causal, s, only);
  std::vector<std::vector<Run>> runs(use.size());
  std::vector<int> calls(use.size());
  for (size_t i = 0; i < use.size(); ++i) {
    CHECK(use[i].kernel.prepare());
    char what[64]; std::snprintf(what, sizeof what, "D%d %s %d", dim, causal ? "causal" : "full", s);
    if (verify) check(use[i], b, what);
    const double us = queue(use[i], b, 4, 1)[0].us;
    calls[i] = std::max(chunks, int(ms * 1e3 / us) / chunks * chunks);
  }
  for (int r = 0; r < rounds; ++r)
    for (size_t k = 0; k < use.size(); ++k) {
      const size_t i = (k + r) % use.size();
      for (auto& x : queue(use[i], b, calls[i], chunks)) runs[i].push_back(x);
    }
  std::printf("D%d %s %d, queues of %d ms:", dim, causal ? "causal" : "full", s, ms);
  double base = 0;
  for (size_t i = 0; i < use.size(); ++i) {
    if (chunks > 1) { std::printf("\n  %s:", use[i].name.c_str()); for (auto& x : runs[i]) std::printf(" %.0f/%.0f", x.us, x.mhz); std::printf("\n   "); }
    auto sorted = runs[i];
    std::sort(sorted.begin(), sorted.end(), [](auto& a, auto& b) { return a.us < b.us; });
    const Run m = sorted[sorted.size() / 2];
    if (i == 0) base = m.us;
    std::printf(" | %s %.1f us (%.1f-%.1f) %.0f TF %.0f MHz %.3f Mclk x%.3f", use[i].name.c_str(), m.us, sorted.front().us, sorted.back().us, flops / m.us * 1e-6, m.mhz, m.us * m.mhz * 1e-6, base / m.us);
  }
  std::printf("\n"); std::fflush(stdout);
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
    float* d_slopes; CHECK(cudaMalloc(&d_slopes, 4 * slopes.size()));
    CHECK(cudaMemcpy(d_slopes, slopes.data(), 4 * slopes.size(), cudaMemcpyHostToDevice));
    T* bias = b.random(int64_t{s} * s, 9);
    __half* bias16; CHECK(cudaMalloc(&bias16, int64_t{s} * s * 2)); b.own.push_back(bias16);
    to_half<<<512, 256>>>(bias, bias16, int64_t{s} * s);
    std::vector<uint4> seeds(p0.heads * p0.packs, uint4{1, 2, 3, 4});
    uint4* d_seeds; CHECK(cudaMalloc(&d_seeds, 16 * seeds.size()));
    CHECK(cudaMemcpy(d_seeds, seeds.data(), 16 * seeds.size(), cudaMemcpyHostToDevice));
    cudaEvent_t e0, e1;
    CHECK(cudaEventCreate(&e0)); CHECK(cudaEventCreate(&e1));
    struct One { std::string name; Variant v; ForwardParams p; std::vector<float> t; };
    std::vector<One> ones;
    ones.push_back({"plain", base, p0, {}});
    for (auto& x : f) {
      auto add = [&](const char* n, auto change) { ForwardParams p = p0; change(p); ones.push_back({x.name + " " + n, x, p, {}}); };
      if (x.plan.tile->features == kAllFeatures) add("none", [](auto&) {});
      const int has = x.plan.tile->features;
      if (has == kSoftCap || has == kAllFeatures) add("cap", [](auto& p) { p.soft_cap = 30.0f; });
      if (has == kAlibi || has == kAllFeatures) add("alibi", [&](auto& p) { p.alibi_slopes = d_slopes; });
      if (has == kAllFeatures) add("bias", [&](auto& p) { p.bias.data = bias; p.bias.type = BiasType::kBF16; p.bias.row_stride = s; p.bias.rows = p.bias.keys = s; });
      if (has == kAllFeatures) add("bias f16", [&](auto& p) { p.bias.data = bias16; p.bias.type = BiasType::kF16; p.bias.row_stride = s; p.bias.rows = p.bias.keys = s; });
      if (has == kAllFeatures) add("all", [&](auto& p) { p.bias.data = bias; p.bias.type = BiasType::kBF16; p.bias.row_stride = s; p.bias.rows = p.bias.keys = s; p.soft_cap = 20.0f; p.alibi_slopes = d_slopes; });
      if (has == kAllFeatures) add("dropout", [&](auto& p) { p.dropout_seed = d_seeds; p.dropout_threshold = 429496729u; p.dropout_scale = 1 / 0.9f; });
    }
    for (int r = -1; r < repeats; ++r)
      for (size_t k = 0; k < ones.size(); ++k) {
        auto& o = ones[r < 0 ? k : (k + r * 3) % ones.size()];
        b.p = o.p;
        if (r < 0) {
          CHECK(o.v.kernel.prepare());
          if (!o.p.dropout_seed) check(o.v, b, o.name.c_str());
        }
        CHECK(cudaMemsetAsync(g_flush, r, 256 << 20));
        CHECK(cudaEventRecord(e0));
        launch(o.v, b);
        CHECK(cudaEventRecord(e1));
        CHECK(cudaEventSynchronize(e1));
        float ms; CHECK(cudaEventElapsedTime(&ms, e0, e1));
        if (r >= 0) o.t.push_back(ms * 1000);
      }
    std::printf("features D%d %s %d:", dim, causal ? "causal" : "full", s);
    for (auto& o : ones) { std::sort(o.t.begin(), o.t.end()); const double us = o.t[o.t.size() / 2]; const double u0 = ones[0].t[ones[0].t.size() / 2]; std::printf(" | %s %.0f us x%.2f", o.name.c_str(), us, us / u0); }
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
// Numbers of one sign, of the other one in every `other`-th row.
__global__ void signs(T* x, int64_t n, int row, float sign, int other) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x)
    x[i] = T(fabsf(float(x[i])) * (other && i / row % other == 0 ? -sign : sign));
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
      {"negative", 1, 1024, 1024, 4, 4, true, 1, 0, -1, 0, -1}, {"negative full", 2, 700, 1100, 4, 2, false, 1, 0, -1, 0, -1},
      {"half negative", 1, 1024, 1300, 4, 4, true, 1, 0, -2, 0, -1}, {"half negative full", 1, 1024, 1300, 4, 4, false, 6, 0, -2, 0, -1},
      {"window", 1, 2048, 2048, 4, 2, true, 1, 0, 0, 0, 300}, {"more rows than keys", 1, 1024, 600, 4, 4, true, 1, 0, 0, 0, -1}};
  int wrong = 0, done = 0;
  for (const Case& c : cases) {
    Buffers b(c.b, c.s, c.k, c.h, c.hk, dim, c.causal);
    b.p.scale *= c.scale;
    b.p.window_left = c.window;
    const int64_t n = int64_t{c.b} * c.k * c.hk * dim;
    if (c.step < 0) { signs<<<512, 256>>>((T*)b.p.query, b.elements, c.h * dim, 1.0f, c.step == -2 ? 3 : 0); signs<<<512, 256>>>((T*)b.p.key, n, c.hk * dim, -1.0f, 0); }
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
      if (std::getenv("TRACE")) std::fprintf(stderr, "%s %s\n", v.name.c_str(), c.name);
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
int main_(int n, char** a) {
  CHECK(cudaMalloc(&g_flush, 256 << 20)); CHECK(cudaMalloc(&g_first, 80 << 20)); CHECK(cudaMalloc(&g_sums, 64));
  const std::string mode = a[1];
  if (mode == "cells") cells(atoi(a[2]), a[3], atoi(a[4]), atoi(a[5]), atoi(a[6]), atoi(a[7]));
  if (mode == "queues") queues(atoi(a[2]), atoi(a[3]), atoi(a[4]), a[5], atoi(a[6]), atoi(a[7]), atoi(a[8]), atoi(a[9]));
  if (mode == "small") {  // dim, names
    const int dim = atoi(a[2]);
    const std::string list = std::string(" ") + a[3] + " ";
    for (bool causal : {false, true})
      for (int rows : {130, 300}) {
        Buffers b(1, rows, rows + 40, 2, 1, dim, causal);
        for (auto& x : of_dim(dim, false))
          if (list.find(" " + x.name + " ") != std::string::npos) { CHECK(x.kernel.prepare()); launch(x, b); CHECK(cudaDeviceSynchronize()); }
      }
    std::printf("small D%d done\n", dim);
  }
  if (mode == "stress") stress(atoi(a[2]));
  if (mode == "features") features(atoi(a[2]), atoi(a[3]), atoi(a[4]));
  if (mode == "one") {  // dim length causal label: two launches of it
    const int dim = atoi(a[2]), s = atoi(a[3]);
    const bool gqa = std::getenv("GQA");
    const Buffers b(16384 / s, s, s, (gqa ? 4096 : 2048) / dim, (gqa ? 1024 : 2048) / dim, dim, atoi(a[4]));
    for (auto& x : of_dim(dim, false)) if (x.name == a[5]) { CHECK(x.kernel.prepare()); for (int r = 0; r < 3; ++r) launch(x, b); CHECK(cudaDeviceSynchronize()); }
  }
  return 0;
}
int main_(int n, char** a);
struct Session { Buffers* b; std::vector<Variant> v; };
static Session g;
static long long* g_marks;
constexpr int kMarks = 512, kSms = 160;
extern "C" {
int lib_count() { if (g.v.empty()) { g.v = all(); const size_t n = g.v.size(); for (size_t i = 0; i < n; ++i) { Variant x = g.v[i]; x.name += "#"; g.v.push_back(x); } } return g.v.size(); }
const char* lib_name(int i) { return g.v[i].name.c_str(); }
int lib_dim(int i) { return g.v[i].plan.tile->dim; }
void lib_setup(int batch, int s, int heads, int dim, int causal, void* q, void* k, void* v, void* o, void* lse, void* ws) {
  if (!g.b) { g.b = (Buffers*)calloc(1, sizeof(Buffers)); CHECK(cudaMalloc(&g_marks, kMarks * kSms * 16)); }
  ForwardParams& p = g.b->p;
  p = ForwardParams{};
  p.query = q, p.key = k, p.value = v, p.out = o, p.lse = (float*)lse;
  g.b->workspace = (unsigned char*)ws;
  g.b->elements = int64_t{batch} * s * heads * dim;
  p.packs = batch, p.sequences = 1;
  p.q_rows = p.max_q = p.k_rows = p.max_k = s;
  p.heads = p.kv_heads = heads, p.group = 1, p.dim = p.dim_v = dim;
  p.causal = causal, p.window_left = p.window_right = -1;
  p.scale = 1.0f / std::sqrt(static_cast<float>(dim)), p.dropout_scale = 1.0f;
  p.vector_q = p.vector_v = 1;
  p.lse_head_stride = s, p.lse_row_stride = 1;
}
void lib_prepare(int i) { CHECK(g.v[i].kernel.prepare()); }
void lib_launch(int i, int count) { for (int c = 0; c < count; ++c) launch(g.v[i], *g.b); }
void lib_stream(void* s) { g_stream = (cudaStream_t)s; }
void lib_mark(int j) { clocks<<<528, 1024, 0, g_stream>>>(g_marks + j * 2 * kSms); }
void lib_clear_marks() { CHECK(cudaMemset(g_marks, 0, kMarks * kSms * 16)); }
double lib_rate(int a, int b) {
  std::vector<long long> x(kSms * 2), y(kSms * 2);
  CHECK(cudaMemcpy(x.data(), g_marks + a * 2 * kSms, kSms * 16, cudaMemcpyDeviceToHost));
  CHECK(cudaMemcpy(y.data(), g_marks + b * 2 * kSms, kSms * 16, cudaMemcpyDeviceToHost));
  return rate(x, y);
}
}
}
