// Checks and times the Hopper backward kernels without JAX: see README.md.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <random>
#include <vector>

#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include "attention/backward/params.h"
#include "attention/sequence.cuh"
#include "reference.cuh"

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

__global__ void count_different(const uint16_t* x, const uint16_t* y, size_t n, int* differ) {
  int own = 0;
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x)
    own += x[i] != y[i];
  if (own) atomicAdd(differ, own);
}

struct Variant {
  std::string name;
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
    p.heads = c.H, p.kv_heads = c.Hkv, p.group = c.H / c.Hkv, p.dim = c.D, p.dim_v = c.Dv;
    p.causal = c.causal, p.deterministic = c.deterministic, p.sink_tokens = c.sink_tokens;
    p.window_left = c.left, p.window_right = c.causal && c.left >= 0 ? 0 : c.right;
    p.scale = 1 / std::sqrt(float(c.D)), p.dropout_scale = 1, p.vector_q = p.vector_v = 1;
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
bool only_det = false;
bool check(const Case& c) {
  
  Call call(c);
  const BackwardParams& p = call.p;
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
      p, w, g, static_cast<T*>(const_cast<void*>(p.out)), const_cast<float*>(p.lse));
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

bool check_dims(int D, int V) {
  std::vector<Case> cases;
  cases.reserve(64);  // references stay
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
  }
  add("waves, groups", 1, 2300, 2300, 32, 8, true);
  add("three waves, groups of 8", 3, 2048, 2048, 16, 2, true);
  add("more waves and a rest, groups", 3, 2100, 2100, 21, 7, true);
  add("many waves of pairs", 2, 2048, 2500, 10, 5, true);
  add("more rows", 2, 3000, 2100, 4, 2, true);
  Case& long_lengths = add("lengths, waves", 2, 2500, 2600, 8, 2, true);
  long_lengths.q_len = {2500, 1300}, long_lengths.k_len = {770, 2600};
  Case& long_packed = add("packed, waves", 1, 2600, 2700, 8, 2, true);
  long_packed.cu_q = {0, 2300, 2590}, long_packed.cu_k = {0, 2500, 2700};
  add("segments, waves", 2, 2400, 2400, 8, 2, true).segments = 900;
  add("ungrouped, 16 tiles", 2, 2048, 2048, 3, 3, true);
  for (size_t i = 0, n = cases.size(); i < n; ++i) {
    cases.push_back(cases[i]);
    cases.back().deterministic = true;
  }
  bool ok = true;
  for (const Case& c : cases)
    if (!only_det || c.deterministic) ok &= check(c);
  printf("%s %zu cases D=%d/%d\n", ok ? "ok" : "FAIL", cases.size(), D, V);
  return ok;
}



double flops_of(const Case& c) { return 4.0 * c.S * c.S * c.H * c.B * (1.5 * c.D + c.Dv) / (c.causal ? 2 : 1) ; }

// A way to run a case: a library, deterministic or not, environment.
struct Way { std::string name; int variant; bool det; std::string env; };

void set_env(const std::string& env, bool on) {
  std::string rest = env;
  while (!rest.empty()) {
    const size_t comma = rest.find(','), equals = rest.find('=');
    const std::string name = rest.substr(0, equals), value = rest.substr(equals + 1, comma == std::string::npos ? comma : comma - equals - 1);
    if (on) setenv(name.c_str(), value.c_str(), 1); else unsetenv(name.c_str());
    rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
  }
}

// Milliseconds of each way in turns; the ratio to the first one.
void bench(const std::vector<Way>& ways, const std::vector<Case>& cases, int reps, bool queue) {
  constexpr size_t kFlush = 160 << 20;
  static void* flush = nullptr;
  if (!flush) CHECK(cudaMalloc(&flush, kFlush));
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  static std::mt19937 random(1);
  printf("%-34s", "TFLOP/s, then cost to the first");
  for (const Way& w : ways) printf(" %-12s", w.name.c_str());
  printf("\n");
  for (const Case& c : cases) {
    Call call(c);
    plausible_lse<<<512, 256>>>(const_cast<float*>(call.p.lse), c.S, c.K, c.causal, call.nl);
    std::vector<std::vector<float>> times(ways.size());
    std::vector<size_t> order;
    for (size_t w = 0; w < ways.size(); ++w) order.push_back(w);
    for (int i = 0; i < reps + 1; ++i, std::shuffle(order.begin(), order.end(), random))
      for (size_t w : order) {
        current = ways[w].variant;
        call.p.deterministic = ways[w].det;
        set_env(ways[w].env, true);
        const int n = queue ? 2 : 1;
        if (!queue) CHECK(cudaMemsetAsync(flush, 0, kFlush));
        CHECK(cudaEventRecord(begin));
        for (int j = 0; j < n; ++j) call.run();
        CHECK(cudaEventRecord(end));
        CHECK(cudaEventSynchronize(end));
        set_env(ways[w].env, false);
        float ms;
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        if (i >= 1) times[w].push_back(ms / n);
      }
    char label[80];
    snprintf(label, sizeof label, "D=%d %s %d,%d,%d/%d", c.D, c.causal ? "causal" : "full", c.B, c.S, c.H, c.Hkv);
    printf("%-34s", label);
    double first = 0;
    for (auto& t : times) {
      std::sort(t.begin(), t.end());
      const double ms = t[t.size() / 2];
      if (first == 0) first = ms;
      printf(" %4.0f %+6.1f%%", flops_of(c) / ms * 1e-9, 100 * (ms / first - 1));
    }
    printf("\n");
    fflush(stdout);
  }
}

std::vector<Case> grid(int D, const std::string& which, bool causal) {
  std::vector<Case> cases;
  const int H = D == 96 ? 16 : D == 192 ? 8 : 2048 / D;
  for (int S : {4096, 16384})
    for (int group : {1, 4, 8})
      if (H / group) cases.push_back({"", 16384 / S, S, S, H, H / group, D, D, causal});
  if (which == "few") {
    cases.resize(2);
    cases.push_back({"", 1, 16384, 16384, H, H, D, D, causal});
    cases.push_back({"", 1, 16384, 16384, H, H / 4, D, D, causal});
    cases.push_back({"", 2, 16384, 16384, H, H / 4, D, D, causal});
  }
  if (which == "more") {
    for (int S : {512, 1024, 2048}) for (int group : {1, 4}) cases.push_back({"", 16384 / S, S, S, H, H / group, D, D, causal});
    cases.push_back({"", 1, 4096, 4096, 32, 8, D, D, causal});
    cases.push_back({"", 2, 16384, 16384, 8, 2, D, D, causal});
    cases.push_back({"", 8, 4096, 4096, 8, 2, D, D, causal});
    cases.push_back({"", 2, 8192, 8192, 32, 8, D, D, causal});
  }
  return cases;
}

std::vector<Case> waves_cases(int D) {
  std::vector<Case> cases;
  cases.reserve(32);
  const auto add = [&](const char* name, int B, int S, int K, int H, int Hkv, bool causal) -> Case& {
    cases.push_back({name, B, S, K, H, Hkv, D, D, causal});
    return cases.back();
  };
  add("waves", 2, 4096, 4096, 16, 4, true);
  add("three waves", 3, 4096, 4096, 32, 8, true);
  add("few long rows", 1, 9000, 9000, 8, 1, true);
  add("many waves", 1, 20000, 20000, 4, 1, true);
  add("8 tiles", 12, 1024, 1024, 16, 4, true);
  add("more keys", 1, 3000, 5000, 16, 4, true);
  add("more rows", 1, 6000, 3000, 16, 4, true);
  add("ungrouped", 2, 4096, 4096, 4, 4, true);
  add("full", 2, 4096, 4096, 8, 2, false);
  Case& l = add("lengths", 2, 5000, 5000, 16, 4, true);
  l.q_len = {5000, 2300}, l.k_len = {4100, 5000};
  Case& packed = add("packed", 1, 9000, 9000, 16, 4, true);
  packed.cu_q = {0, 5000, 6000, 9000}, packed.cu_k = {0, 4500, 6500, 9000};
  add("segments", 1, 6000, 6000, 16, 4, true).segments = 2500;
  add("segments, full", 1, 6000, 6000, 8, 8, false).segments = 900;
  return cases;
}

// Deterministic results of a library against those of another one that is not, bit by bit over repeats. Soft cap: features.
bool against(int other, int own, const Case& c, float soft_cap, int times) {
  Call call(c);
  BackwardParams& p = call.p;
  p.soft_cap = soft_cap;
  const std::vector<size_t> sizes = {call.nq, call.nk, call.nv};
  void* const at[] = {p.dq, p.dk, p.dv};
  plausible_lse<<<512, 256>>>(const_cast<float*>(p.lse), c.S, c.K, c.causal, call.nl);
  const auto run = [&](int variant, bool det) {
    std::vector<std::vector<uint16_t>> out;
    current = variant;
    p.deterministic = det;
    int64_t bytes = variants[variant].bytes(&p);
    static void* workspace = nullptr;
    static int64_t has = 0;
    if (bytes > has) { if (workspace) cudaFree(workspace); CHECK(cudaMalloc(&workspace, has = bytes)); CHECK(cudaMemset(workspace, 0xff, bytes)); }
    call.workspace = workspace;
    for (int i = 0; i < 3; ++i) CHECK(cudaMemset(at[i], 0xff, sizes[i] * 2));
    call.run();
    CHECK(cudaDeviceSynchronize());
    for (int i = 0; i < 3; ++i) {
      out.emplace_back(sizes[i]);
      CHECK(cudaMemcpy(out[i].data(), at[i], sizes[i] * 2, cudaMemcpyDeviceToHost));
    }
    return out;
  };
  const auto wanted = run(other, false), loose = run(own, false), first = run(own, true);
  bool ok = true;
  const auto value = [](uint16_t x) { uint32_t y = uint32_t(x) << 16; float f; memcpy(&f, &y, 4); return double(f); };
  const auto error = [&](const std::vector<uint16_t>& x, const std::vector<uint16_t>& y) {
    double e = 0, n = 1e-30;
    size_t nans = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double a = value(x[i]), b = value(y[i]);
      if (a != a || b != b) { nans += (a == a) != (b == b); continue; }
      e += (a - b) * (a - b), n += b * b;
    }
    return nans ? 1e9 : std::sqrt(e / n);
  };
  double worst = 0;
  for (int i = 0; i < 3; ++i) worst = std::max({worst, error(first[i], wanted[i]), error(loose[i], wanted[i])});
  ok &= worst < 4e-3;
  // Repeats: compared on the device.
  static int* differ = nullptr;
  if (!differ) CHECK(cudaMallocManaged(&differ, 4));
  *differ = 0;
  std::vector<void*> copies;
  for (int i = 0; i < 3; ++i) {
    void* copy;
    CHECK(cudaMalloc(&copy, sizes[i] * 2));
    CHECK(cudaMemcpy(copy, first[i].data(), sizes[i] * 2, cudaMemcpyHostToDevice));
    copies.push_back(copy);
  }
  p.deterministic = true, current = own;
  for (int t = 0; t < times; ++t) {
    call.run();
    for (int i = 0; i < 3; ++i) count_different<<<256, 256>>>(static_cast<const uint16_t*>(at[i]), static_cast<const uint16_t*>(copies[i]), sizes[i], differ);
  }
  CHECK(cudaDeviceSynchronize());
  for (void* copy : copies) cudaFree(copy);
  ok &= *differ == 0;
  if (!ok) printf("FAIL %s D=%d: error %.1e, %d differ\n", c.name.c_str(), c.D, worst, *differ);
  fflush(stdout);
  return ok;
}

// det check D [-rN] [-d] LIB... | det bench D MASK which reps LIB:det:env ...
int main(int argc, char** argv) {
  if (argc < 4) return 1;
  const std::string what = argv[1];
  const int D = atoi(argv[2]);
  const auto load = [](const std::string& name) {
    for (size_t i = 0; i < variants.size(); ++i) if (variants[i].name == name) return int(i);
    Variant v;
    v.name = name;
    v.handle = dlopen(("./" + name + ".so").c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!v.handle) exit((printf("FAIL %s\n", dlerror()), 2));
    v.bytes = (decltype(v.bytes))dlsym(v.handle, "bwd_bytes");
    v.run = (decltype(v.run))dlsym(v.handle, "bwd_run");
    variants.push_back(v);
    return int(variants.size() - 1);
  };
  if (what == "check") {
    int at = 3;
    for (; at < argc && argv[at][0] == '-'; ++at) {
      if (argv[at][1] == 'r') repeats = atoi(argv[at] + 2);
      if (argv[at][1] == 'd') only_det = true;
    }
    for (; at < argc; ++at) {
      current = load(argv[at]);
      printf("%s: ", argv[at]);
      fflush(stdout);
      D > 1000 ? check_dims(D / 1000, D % 1000) : check_dims(D, D);
      fflush(stdout);
    }
    return 0;
  }
  if (what == "against") {  // det against D REPEATS SOFT_CAP OTHER OWN
    const int other = load(argv[5]), own = load(argv[6]);
    bool ok = true;
    auto cases = waves_cases(D);
    if (getenv("LIGHT")) cases.erase(std::remove_if(cases.begin(), cases.end(), [](const Case& c) { return c.name == "three waves" || c.name == "many waves" || (c.name == "packed") ; }), cases.end());
    for (const Case& c : cases) ok &= against(other, own, c, atof(argv[4]), atoi(argv[3]));
    printf("against %s: %s %s D=%d soft cap %s: %zu cases, %s repeats\n", argv[5], argv[6], ok ? "ok" : "FAIL", D, argv[4], cases.size(), argv[3]);
    return !ok;
  }
  if (what == "small") {  // for compute-sanitizer: small deterministic calls
    current = load(argv[3]);
    std::vector<Case> cases = {{"", 1, 1100, 1100, 4, 1, D, D, true}, {"", 2, 300, 300, 2, 2, D, D, true}, {"", 1, 260, 300, 2, 1, D, D, false}};
    Case segments = {"", 1, 1100, 1100, 2, 1, D, D, true};
    segments.segments = 500;
    cases.push_back(segments);
    for (Case& c : cases) {
      c.deterministic = true;
      Call call(c);
      plausible_lse<<<64, 256>>>(const_cast<float*>(call.p.lse), c.S, c.K, c.causal, call.nl);
      call.run();
      CHECK(cudaDeviceSynchronize());
    }
    printf("small D=%d done\n", D);
    return 0;
  }
  std::vector<Way> ways;
  for (int i = 6; i < argc; ++i) {
    const std::string a = argv[i];
    const size_t x = a.find(':'), y = a.find(':', x + 1);
    Way w = {a.substr(0, x), load(a.substr(0, x)), a[x + 1] == 'd', a.substr(y + 1)};
    w.name += (w.det ? "," : " free") + w.env;
    ways.push_back(w);
  }
  for (const char* m = argv[3]; *m; ++m) bench(ways, grid(D, argv[4], *m == 'c'), atoi(argv[5]), what == "queue");
  return 0;
}
