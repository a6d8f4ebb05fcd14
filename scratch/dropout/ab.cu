// Checks and times the Hopper backward kernels without JAX: see README.md.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include "attention/backward/params.h"
#include "attention/sequence.cuh"
#include "ref.cuh"

using namespace jax_baracuda;

#define CHECK(x)                                                                 \
  do {                                                                           \
    const cudaError_t error_ = (x);                                              \
    if (error_ != cudaSuccess) {                                                 \
      printf("FAIL %s:%d %s\n", __FILE__, __LINE__, cudaGetErrorString(error_)); \
      fflush(stdout);                                                            \
      exit(2);                                                                   \
    }                                                                            \
  } while (0)

#include <dlfcn.h>
#include <unistd.h>
#ifdef F16
using T = __half;
#else
using T = __nv_bfloat16;
#endif


__device__ uint32_t hashed(uint64_t x) {
  x = (x ^ x >> 33) * 0xff51afd7ed558ccdull;
  x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53ull;
  return static_cast<uint32_t>(x ^ x >> 33);
}
template <class U>
__global__ void fill_normal(U* x, size_t n, uint64_t seed, float factor) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += size_t{gridDim.x} * blockDim.x) {
    const float u = (hashed(seed * 0x9e3779b97f4a7c15ull + 2 * i) + 0.5f) * 2.3283064e-10f;
    const float v = (hashed(seed * 0x9e3779b97f4a7c15ull + 2 * i + 1) + 0.5f) * 2.3283064e-10f;
    x[i] = U(factor * sqrtf(-2.0f * logf(u)) * cospif(2.0f * v));
  }
}
__global__ void poison(T* x, int rows, int width, const int* lengths) {
  for (int row = lengths[blockIdx.y] + blockIdx.x; row < rows; row += gridDim.x)
    for (int c = threadIdx.x; c < width; c += blockDim.x)
      x[(size_t{blockIdx.y} * rows + row) * width + c] = T(NAN);
}
__global__ void plausible_lse(float* lse, int rows, int keys, bool causal, size_t n) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += size_t{gridDim.x} * blockDim.x)
    lse[i] = logf(causal ? max(1, int(i % rows) + 1 + keys - rows) : keys) + 0.5f;
}
__global__ void row_errors(const T* x, const float* wanted, int width, float2* out) {
  __shared__ float2 sums[64];
  float2 s = {0, 0};
  for (int c = threadIdx.x; c < width; c += 64) {
    const float y = wanted[size_t{blockIdx.x} * width + c];
    const float d = float(x[size_t{blockIdx.x} * width + c]) - y;
    s.x += d * d;
    s.y += y * y;
  }
  sums[threadIdx.x] = s;
  __syncthreads();
  if (threadIdx.x) return;
  for (int i = 1; i < 64; ++i) {
    s.x += sums[i].x;
    s.y += sums[i].y;
  }
  out[blockIdx.x] = s;
}

bool fine = true;  // dropout: a word of 32 bits an element
struct Variant {
  std::string name, only;
  void* handle;
  long (*bytes)(const BackwardParams*);
  int (*run)(const BackwardParams*, void*);
  int (*trace)(void*, size_t);
};
std::vector<Variant> variants;
int current = 0;
struct Case {
  std::string name;
  int B, S, K, H, Hkv, D, Dv;
  bool causal = false, deterministic = false;
  int left = -1, right = -1, sink_tokens = 0, segments = 0;
  std::vector<int> q_len, k_len, cu_q, cu_k;
  bool sinks = false, dlse = false;
  float factor = 1;
  float cap = 0, rate = 0;
  bool alibi = false;
  int bias = 0, bias_rows = 1;  // BiasType
  float bias_heads = 1;
};

// The operands of a case on the device.
struct Call {
  BackwardParams p;
  size_t nq, nk, nv, no, nl;
  void* workspace = nullptr;
  std::vector<void*> owned;

  template <class U>
  U* take(size_t n) {
    void* data;
    CHECK(cudaMalloc(&data, n * sizeof(U) + 256));
    owned.push_back(data);
    return static_cast<U*>(data);
  }
  template <class U>
  U* copy(const std::vector<U>& from) {
    U* to = take<U>(from.size());
    CHECK(cudaMemcpy(to, from.data(), from.size() * sizeof(U), cudaMemcpyHostToDevice));
    return to;
  }
  template <class U>
  U* normal(size_t n, float factor = 1) {
    static uint64_t seed = 12345;
    U* to = take<U>(n);
    fill_normal<U><<<1024, 256>>>(to, n, seed++, factor);
    return to;
  }
  ~Call() {
    for (void* data : owned) cudaFree(data);
  }

  explicit Call(const Case& c) {
    memset(static_cast<void*>(&p), 0, sizeof p);
    nq = size_t(c.B) * c.S * c.H * c.D, nk = size_t(c.B) * c.K * c.Hkv * c.D;
    nv = size_t(c.B) * c.K * c.Hkv * c.Dv, no = size_t(c.B) * c.S * c.H * c.Dv;
    nl = size_t(c.B) * c.S * c.H;
    T *q = normal<T>(nq, c.factor), *k = normal<T>(nk), *v = normal<T>(nv), *d = normal<T>(no);
    p.query = q, p.key = k, p.value = v, p.dout = d;
    p.out = normal<T>(no, 1 / std::sqrt(float(c.K)));
    p.lse = take<float>(nl), p.delta = take<float>(nl);
    p.dq = take<T>(nq), p.dk = take<T>(nk), p.dv = take<T>(nv);
    p.packs = c.B, p.sequences = 1, p.q_rows = p.max_q = c.S, p.k_rows = p.max_k = c.K;
    const auto pad = [&](const std::vector<int>& q_len, const std::vector<int>& k_len) {
      const int *of_q = copy(q_len), *of_k = copy(k_len);
      poison<<<dim3(64, c.B), 256>>>(q, c.S, c.H * c.D, of_q);
      poison<<<dim3(64, c.B), 256>>>(d, c.S, c.H * c.Dv, of_q);
      poison<<<dim3(64, c.B), 256>>>(k, c.K, c.Hkv * c.D, of_k);
      poison<<<dim3(64, c.B), 256>>>(v, c.K, c.Hkv * c.Dv, of_k);
    };
    if (!c.cu_q.empty()) {
      p.sequences = int(c.cu_q.size()) / c.B - 1;
      p.cu_seqlens_q = copy(c.cu_q), p.cu_seqlens_k = copy(c.cu_k);
      p.max_q = p.max_k = 1;
      for (size_t i = 0; i + 1 < c.cu_q.size(); ++i) {
        p.max_q = std::max(p.max_q, c.cu_q[i + 1] - c.cu_q[i]);
        p.max_k = std::max(p.max_k, c.cu_k[i + 1] - c.cu_k[i]);
      }
      pad({c.cu_q.back()}, {c.cu_k.back()});
    }
    if (!c.q_len.empty()) {
      p.query_lengths = copy(c.q_len), p.kv_lengths = copy(c.k_len);
      pad(c.q_len, c.k_len);
    }
    if (c.segments) {
      const auto ids = [&](int rows) {
        std::vector<int> x;
        for (int b = 0; b < c.B; ++b)
          for (int i = 0; i < rows; ++i) x.push_back((i + 37 * b) / c.segments);
        return x;
      };
      const auto ranges = [&](const std::vector<int>& x, int rows) {
        std::vector<int2> r;
        for (int b = 0; b < c.B; ++b)
          for (int i = 0; i < rows; i += kSegmentBlock)
            r.push_back(
                make_int2(x[b * rows + i], x[b * rows + std::min(i + kSegmentBlock, rows) - 1]));
        return copy(r);
      };
      p.query_segments = copy(ids(c.S)), p.kv_segments = copy(ids(c.K));
      p.query_segment_range = ranges(ids(c.S), c.S), p.kv_segment_range = ranges(ids(c.K), c.K);
    }
    if (c.sinks) {
      std::vector<float> x(c.H);
      for (int i = 0; i < c.H; ++i) x[i] = 0.5f * i - 1;
      p.sinks = copy(x);
    }
    if (c.dlse) p.dlse = normal<float>(nl);
    if (c.alibi) {
      std::vector<float> x(c.H);
      for (int i = 0; i < c.H; ++i) x[i] = std::exp2(-(i + 1) / 2.0f);
      p.alibi_slopes = copy(x);
    }
    if (c.bias) {
      p.bias.type = static_cast<BiasType>(c.bias);
      p.bias.rows = p.max_q, p.bias.keys = p.max_k;
      const size_t of_head = size_t(c.bias_rows) * c.K;
      p.bias.row_stride = c.bias_rows > 1 ? c.K : 0, p.bias.head_stride = of_head;
      if (c.K % 8) p.bias.row_stride = c.bias_rows > 1 ? c.K + 8 - c.K % 8 : 0, p.bias.head_stride = size_t(c.bias_rows) * (c.K + 8 - c.K % 8);
      const size_t all = size_t(p.bias.head_stride) * c.H;
      if (p.bias.type == BiasType::kF32) p.bias.data = normal<float>(all);
      if (p.bias.type == BiasType::kF16) p.bias.data = normal<__half>(all);
      if (p.bias.type == BiasType::kBF16) p.bias.data = normal<__nv_bfloat16>(all);
      if (p.bias.type == BiasType::kMask) {
        std::vector<uint8_t> x(all);
        for (size_t i = 0; i < x.size(); ++i) x[i] = i * 2654435761u >> 7 & 3;
        p.bias.data = copy(x);
      }
    }
    p.scale = 1, p.dropout_scale = 1, p.soft_cap = c.cap;
    if (c.rate > 0) {
      std::vector<uint4> x(size_t(c.B) * c.H * std::max(1, int(c.cu_q.size()) - 1));
      for (size_t i = 0; i < x.size(); ++i) x[i] = make_uint4(3 + i / 5, 5, i % 7, i / 7);
      p.dropout_seed = copy(x);
      p.dropout_threshold = uint32_t(c.rate * 32768 + 0.5f);
      p.dropout_scale = 1 / (1 - p.dropout_threshold / 32768.0f);
    }
    p.heads = c.H, p.kv_heads = c.Hkv, p.group = c.H / c.Hkv, p.dim = c.D, p.dim_v = c.Dv;
    p.causal = c.causal, p.deterministic = c.deterministic, p.sink_tokens = c.sink_tokens;
    p.window_left = c.left, p.window_right = c.causal && c.left >= 0 ? 0 : c.right;
    p.scale = 1 / std::sqrt(float(c.D)), p.vector_q = p.vector_v = 1;
    int64_t bytes = 0;
    for (const Variant& v : variants) bytes = std::max<int64_t>(bytes, v.bytes(&p));
    workspace = take<char>(bytes);
    CHECK(cudaMemset(workspace, 0xff, bytes));
    CHECK(cudaDeviceSynchronize());
  }

  void run() const {
    const int e = variants[current].run(&p, workspace);
    if (e) exit((printf("FAIL %s error %d\n", variants[current].name.c_str(), e), 2));
  }
};

bool compare(const Case& c, const char* what, const void* x, const float* wanted, size_t rows,
             int width) {
  constexpr double kLimit = 8e-3;
  float2* device;
  std::vector<float2> e(rows);
  CHECK(cudaMalloc(&device, rows * sizeof(float2)));
  row_errors<<<unsigned(rows), 64>>>(static_cast<const T*>(x), wanted, width, device);
  CHECK(cudaMemcpy(e.data(), device, rows * sizeof(float2), cudaMemcpyDeviceToHost));
  cudaFree(device);
  double error = 0, norm = 0, worst = 0;
  size_t at = 0, bad = 0;
  for (const float2& r : e) error += r.x, norm += r.y;
  const double rms = std::sqrt(norm / rows);
  for (size_t i = 0; i < rows; ++i) {
    const double v = std::sqrt(e[i].x) / (std::sqrt(e[i].y) + 0.3 * rms + 1e-4);
    if (!(v <= worst)) worst = v, at = i;
    bad += !(v < 8 * kLimit);
  }
  const double relative = norm > 0 ? std::sqrt(error / (norm + 1e-6 * rows)) : std::sqrt(error);
  if (relative < kLimit && bad == 0) return true;
  printf("FAIL %s D=%d/%d %s: error %.2e, worst row %zu of %zu %.2e, bad rows %zu\n",
         c.name.c_str(), c.D, c.Dv, what, relative, at, rows, worst, bad);
  return false;
}

int repeats = 50;
bool nodet = false, onlydet = false, quick = false;
int dim_v = 0;
size_t case_limit = 1000;
bool check(const Case& c) {
  
  Call call(c);
  const BackwardParams& p = call.p;
  if (variants[current].run(&p, call.workspace) == 9999) {
    printf("(no kernel: %s) ", c.name.c_str());
    return true;
  }
  const unsigned seqs = p.packs * p.sequences, heads = p.heads, kv_heads = p.kv_heads;
  const size_t n = size_t{seqs} * heads * p.max_q * p.max_k;
  float *w = call.take<float>(n), *g = call.take<float>(n);
  float *dq = call.take<float>(call.nq), *dk = call.take<float>(call.nk),
        *dv = call.take<float>(call.nv);
  CHECK(cudaMemset(dq, 0, call.nq * 4));
  CHECK(cudaMemset(dk, 0, call.nk * 4));
  CHECK(cudaMemset(dv, 0, call.nv * 4));
  const std::vector<float> unseen(call.nl, -INFINITY);  // LSE outside of sequences
  CHECK(cudaMemcpy(const_cast<float*>(p.lse), unseen.data(), call.nl * 4, cudaMemcpyHostToDevice));
  reference_rows<T><<<dim3(p.max_q, heads, seqs), 128>>>(
      p, w, g, static_cast<T*>(const_cast<void*>(p.out)), const_cast<float*>(p.lse), fine);
  reference_dq<T><<<dim3(p.max_q, heads, seqs), 128>>>(p, g, dq);
  reference_dkv<T><<<dim3(p.max_k, kv_heads, seqs), 128>>>(p, w, g, dk, dv);
  CHECK(cudaGetLastError());
  CHECK(cudaMemset(p.dq, 0xff, call.nq * 2));
  CHECK(cudaMemset(p.dk, 0xff, call.nk * 2));
  CHECK(cudaMemset(p.dv, 0xff, call.nv * 2));
  call.run();
  CHECK(cudaDeviceSynchronize());
  bool ok = compare(c, "dQ", p.dq, dq, call.nq / c.D, c.D);
  ok &= compare(c, "dK", p.dk, dk, call.nk / c.D, c.D);
  ok &= compare(c, "dV", p.dv, dv, call.nv / c.Dv, c.Dv);
  if (!c.deterministic) return ok;
  std::vector<uint16_t> first(call.nq), now(call.nq);
  CHECK(cudaMemcpy(first.data(), p.dq, call.nq * 2, cudaMemcpyDeviceToHost));
  int differ = 0;
  for (int i = 0; i < repeats; ++i) {
    call.run();
    CHECK(cudaMemcpy(now.data(), p.dq, call.nq * 2, cudaMemcpyDeviceToHost));
    differ += now != first;
  }
  if (differ) printf("FAIL %s D=%d: %d of %d repeats differ\n", c.name.c_str(), c.D, differ, repeats);
  return ok && !differ;
}

char option = 0;  // c, a, b, d
void set_option(Case& c) {
  if (option == 'c') c.cap = 20;
  if (option == 'a') c.alibi = true;
  if (option == 'b') c.bias = int(BiasType::kF32);
  if (option == 'd') c.rate = 0.1f;
  if (option == 'f') c.bias = int(BiasType::kBF16), c.bias_rows = std::max(c.S, c.K);
}
bool check_dims(int D, int V) {
  std::vector<Case> cases;
  cases.reserve(80);  // references stay
  const auto add = [&](const char* name, int B, int S, int K, int H, int Hkv,
                       bool causal) -> Case& {
    cases.push_back({name, B, S, K, H, Hkv, D, V, causal});
    return cases.back();
  };
  add("one block", 1, 64, 128, 1, 1, false);
  add("two row blocks", 1, 128, 128, 1, 1, false);
  add("half a tile", 1, 128, 64, 1, 1, false);
  add("256 x 512", 2, 256, 512, 2, 2, false);
  add("causal 512", 2, 512, 512, 2, 2, true);
  add("many tiles", 4, 1024, 1024, 8, 8, false);
  add("many tiles causal", 4, 1024, 1024, 8, 8, true);
  add("113 x 203, groups", 3, 113, 203, 8, 2, false);
  add("799 x 1023 causal, groups", 2, 799, 1023, 8, 2, true);
  add("1023 x 700 causal", 2, 1023, 700, 4, 4, true);
  add("1 x 1", 1, 1, 1, 1, 1, true);
  add("large logits", 1, 512, 512, 2, 2, true).factor = 6;
  add("dlse", 1, 300, 300, 2, 2, true).dlse = true;
  add("narrow", 1, 300, 300, 2, 2, true).D -= 8;
  cases.back().Dv -= 16;
  Case& window = add("window", 2, 777, 900, 4, 2, false);
  window.left = 100, window.right = 50;
  Case& sinks = add("window, sinks", 2, 1500, 1500, 4, 2, true);
  sinks.left = 200, sinks.sink_tokens = 5, sinks.sinks = true;
  for (bool causal : {true, false}) {
    Case& lengths = add("lengths", 3, 500, 600, 4, 2, causal);
    lengths.q_len = {500, 130, causal ? 0 : 7}, lengths.k_len = {77, causal ? 600 : 0, 333};
    Case& packed = add("packed", 1, 1200, 1300, 4, 2, causal);
    packed.cu_q = {causal ? 0 : 20, 100, 100, 577, 1101}, packed.cu_k = {0, 300, 310, 700, 1111};
    add("segments", 2, 900, 900, 4, 2, causal).segments = causal ? 170 : 300;
    add("in order", 2, 1000, 1000, 4, 2, causal).deterministic = true;
    cases.push_back(packed);
    cases.back().deterministic = true;
  }
  for (Case& c : cases) set_option(c);
  if (option == 'c') {
    add("cap 2", 1, 500, 400, 2, 2, false).cap = 2;
    Case& c = add("cap 5, large", 1, 512, 512, 2, 2, true);
    c.cap = 5, c.factor = 6;
  }
  if (option == 'b')
    for (int type : {1, 2, 4}) {
      Case& c = add("bias type", 2, 500, 400, 4, 2, type == 2);
      c.bias = type;
      cases.push_back(c);
      cases.back().bias_rows = 500;
    }
  if (option == 'd') add("rate 0.7", 2, 500, 400, 4, 2, true).rate = 0.7f;
  bool ok = true;
  for (const Case& c : cases) if ((!nodet || !c.deterministic) && (!onlydet || c.deterministic) && (!quick || double(c.B) * c.S * c.K * c.H < 1.2e7) && size_t(&c - &cases[0]) < case_limit) ok &= check(c);
  printf("%s D=%d/%d\n", ok ? "ok" : "FAIL", D, V);
  return ok;
}


struct Nvml {
  void* device = nullptr;
  int (*power)(void*, unsigned*) = nullptr;
  int (*clock)(void*, int, unsigned*) = nullptr;
  Nvml() {
    void* lib = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (!lib) return;
    auto init = (int (*)())dlsym(lib, "nvmlInit_v2");
    auto get = (int (*)(unsigned, void**))dlsym(lib, "nvmlDeviceGetHandleByIndex_v2");
    if (!init || init() || get(getenv("CUDA_VISIBLE_DEVICES") ? atoi(getenv("CUDA_VISIBLE_DEVICES")) : 0, &device)) { device = nullptr; return; }
    power = (int (*)(void*, unsigned*))dlsym(lib, "nvmlDeviceGetPowerUsage");
    clock = (int (*)(void*, int, unsigned*))dlsym(lib, "nvmlDeviceGetClockInfo");
  }
  int watts() { unsigned x; return device && !power(device, &x) ? x / 1000 : -1; }
  int mhz() { unsigned x; return device && !clock(device, 1, &x) ? x : -1; }
};

Case square(int D, int S, bool causal, bool det) {
  const int H = 2048 / D;
  Case c = {"", 16384 / S, S, S, H, H, D, dim_v ? dim_v : D, causal, det};
  set_option(c);
  return c;
}
double flops_of(const Case& c) { return (6.0 * c.D + 4.0 * c.Dv) * c.S * c.S * c.H * c.B / (c.causal ? 2 : 1); }

std::string options = ".";
// Variants and options in turns; a variant "x@ab" has only options a and b.
void bench(int D, bool causal, bool det, const std::vector<int>& lengths, int reps) {
  constexpr size_t kFlush = 160 << 20;
  static void* flush = nullptr;
  if (!flush) CHECK(cudaMalloc(&flush, kFlush));
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  struct Row { int variant; char option; std::vector<float> times; std::vector<double> rates; };
  std::vector<Row> rows;
  for (char o : options)
    for (size_t v = 0; v < variants.size(); ++v)
      if (variants[v].only.empty() || variants[v].only.find(o) != std::string::npos) rows.push_back({int(v), o, {}, {}});
  for (int S : lengths) {
    std::vector<Call*> calls(256, nullptr);
    double flops = 0;
    for (char o : options) {
      option = o;
      const Case c = square(D, S, causal, det);
      flops = flops_of(c);
      calls[o] = new Call(c);
      plausible_lse<<<512, 256>>>(const_cast<float*>(calls[o]->p.lse), c.S, c.K, c.causal, calls[o]->nl);
    }
    for (Row& row : rows) row.times.clear();
    for (int i = 0; i < reps + 1; ++i)
      for (Row& row : rows) {
        current = row.variant;
        CHECK(cudaMemsetAsync(flush, 0, kFlush));
        CHECK(cudaEventRecord(begin));
        calls[row.option]->run();
        CHECK(cudaEventRecord(end));
        CHECK(cudaEventSynchronize(end));
        float ms;
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        if (i >= 1) row.times.push_back(ms);
      }
    for (Row& row : rows) {
      std::sort(row.times.begin(), row.times.end());
      row.rates.push_back(flops / row.times[row.times.size() / 2] * 1e-9);
    }
    for (char o : options) delete calls[o], calls[o] = nullptr;
  }
  printf("D=%d %s%s", D, causal ? "causal" : "full", det ? " det" : "");
  for (int S : lengths) printf(" %d", S);
  printf("  TFLOP/s (ratio to the first row)\n");
  for (Row& row : rows) {
    printf("  %c %-9s", row.option, variants[row.variant].name.c_str());
    for (size_t i = 0; i < row.rates.size(); ++i) printf("  %4.0f %.2f", row.rates[i], row.rates[i] / rows[0].rates[i]);
    printf("\n");
  }
  fflush(stdout);
}

// Calls one after the other without a pause: rate, clock and power over time.
void queue(int D, bool causal, int S, double seconds) {
  Nvml nvml;
  const Case c = square(D, S, causal, false);
  Call call(c);
  plausible_lse<<<512, 256>>>(const_cast<float*>(call.p.lse), c.S, c.K, c.causal, call.nl);
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  for (current = 0; current < (int)variants.size(); ++current) {
    CHECK(cudaDeviceSynchronize());
    usleep(300000);
    printf("queue %s D=%d %s S=%d: TFLOP/s@MHz,W:", variants[current].name.c_str(), D, causal ? "causal" : "full", S);
    double total = 0;
    int n = 4;
    for (int step = 0; total < seconds; ++step) {
      CHECK(cudaEventRecord(begin));
      for (int i = 0; i < n; ++i) call.run();
      CHECK(cudaEventRecord(end));
      usleep(20000);
      const int mhz = nvml.mhz(), watts = nvml.watts();
      CHECK(cudaEventSynchronize(end));
      float ms;
      CHECK(cudaEventElapsedTime(&ms, begin, end));
      total += ms * 1e-3;
      printf(" %.0f@%d,%d", flops_of(c) * n / ms * 1e-9, mhz, watts);
      n = std::max(4, int(n * 350 / ms));
    }
    printf("\n");
    fflush(stdout);
  }
}

// Averages of the intervals between the points of the traced row blocks.
void trace(int D, bool causal, int S) {
  constexpr int kPoints = 28, kBlocks = 64;
  const Case c = square(D, S, causal, false);
  Call call(c);
  plausible_lse<<<512, 256>>>(const_cast<float*>(call.p.lse), c.S, c.K, c.causal, call.nl);
  for (current = 0; current < (int)variants.size(); ++current) {
    if (!variants[current].trace) continue;
    call.run();
    call.run();
    std::vector<unsigned> t(kPoints * kBlocks * 8);
    CHECK(cudaError_t(variants[current].trace(t.data(), t.size() * 4)));
    const auto at = [&](int block, int point, int warp) { return t[(block * kPoints + point) * 8 + warp]; };
    printf("trace %s D=%d %s S=%d: means since the row block's begin\n", variants[current].name.c_str(), D, causal ? "causal" : "full", S);
    for (int end : {0, 1})
      for (int warp : {0, 4}) {
        double sum[kPoints + 1] = {};
        int n = 0;
        for (int b = 0; b + 1 < kBlocks; ++b) {
          const bool ends = int(at(b, 27, warp) - at(b, 0, warp)) > 0 && int(at(b, 27, warp) - at(b, 0, warp)) < 60000 && at(b, 27, warp);
          const int next = int(at(b + 1, 0, warp) - at(b, 0, warp));
          if (ends != (end == 1) || next < 0 || next > 100000 || !at(b, 0, warp) || !at(b + 1, 0, warp)) continue;
          ++n;
          for (int i = 0; i < kPoints; ++i) {
            const int d = int(at(b, i, warp) - at(b, 0, warp));
            if (at(b, i, warp) && d > -2000 && d < 100000) sum[i] += d;
          }
          sum[kPoints] += next;
        }
        printf("  %s w%d n=%d:", end ? "last" : "loop", warp, n);
        for (int i = 0; i < kPoints; ++i)
          if (sum[i]) printf(" %d:%.0f", i, sum[i] / std::max(n, 1));
        printf(" next:%.0f\n", sum[kPoints] / std::max(n, 1));
      }
    fflush(stdout);
  }
}

int main(int argc, char** argv) {
  if (argc < 3) return 1;
  const std::string what = argv[1];
  const int D = atoi(argv[2]);
  int at = 3;
  bool causal = false, det = false;
  int S = 8192, reps = 7;
  double seconds = 3;
  std::vector<int> lengths;
  for (; at < argc && argv[at][0] == '-'; ++at) {
    const char o = argv[at][1];
    const char* v = argv[at] + 2;
    if (o == 'c') causal = true;
    if (o == 'd') det = true;
    if (o == 'x') nodet = true;
    if (o == 'y') onlydet = true;
    if (o == 'q') quick = true;
    if (o == 'v') dim_v = atoi(v);
    if (o == 'k') case_limit = atoi(v);
    if (o == 'o') options = v;
    if (o == 'n') fine = false;
    if (o == 'r') reps = repeats = atoi(v);
    if (o == 't') seconds = atof(v);
    if (o == 's') {
      for (const char* x = v; *x;) {
        char* e;
        lengths.push_back(strtol(x, &e, 10));
        x = *e ? e + 1 : e;
      }
      S = lengths[0];
    }
  }
  if (lengths.empty()) lengths = {512, 1024, 2048, 4096, 8192, 16384};
  for (; at < argc; ++at) {
    Variant v;
    v.name = argv[at];
    if (const size_t cut = v.name.find('@'); cut != std::string::npos) v.only = v.name.substr(cut + 1), v.name.resize(cut);
    const std::string path = "./" + v.name + ".so";
    v.handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!v.handle) exit((printf("FAIL %s\n", dlerror()), 2));
    v.bytes = (decltype(v.bytes))dlsym(v.handle, "bwd_bytes");
    v.run = (decltype(v.run))dlsym(v.handle, "bwd_run");
    v.trace = (decltype(v.trace))dlsym(v.handle, "bwd_trace");
    variants.push_back(v);
  }
  if (what == "bench") bench(D, causal, det, lengths, reps);
  if (what == "queue") queue(D, causal, S, seconds);
  if (what == "trace") trace(D, causal, S);
  if (what == "one") { const Case c = square(D, S, causal, det); Call call(c); plausible_lse<<<512, 256>>>(const_cast<float*>(call.p.lse), c.S, c.K, c.causal, call.nl); call.run(); CHECK(cudaDeviceSynchronize()); }
  if (what == "check")
    for (current = 0; current < (int)variants.size(); ++current)
      for (char o : options) {
        if (!variants[current].only.empty() && variants[current].only.find(o) == std::string::npos) continue;
        option = o;
        printf("%s %c: ", variants[current].name.c_str(), o);
        fflush(stdout);
        check_dims(D, dim_v ? dim_v : D);
        fflush(stdout);
      }
  return 0;
}
