// Checks and times the Hopper backward kernels without JAX: see README.md.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "attention/hopper/backward/inst/kernel.cuh"
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

namespace jax_baracuda {
const std::vector<HopperBackwardKernel>& hopper_backward_kernels() {
  static const std::vector<HopperBackwardKernel> kernels = {
      hopper_backward_kernel_entry<DType::kBF16, 64, 64, false>(),
      hopper_backward_kernel_entry<DType::kBF16, 96, 96, false>(),
      hopper_backward_kernel_entry<DType::kBF16, 128, 128, false>(),
      hopper_backward_kernel_entry<DType::kBF16, 192, 128, false>(),
      hopper_backward_kernel_entry<DType::kBF16, 192, 192, false>(),
      hopper_backward_kernel_entry<DType::kBF16, 256, 256, false>(),
  };
  return kernels;
}
}  // namespace jax_baracuda

using T = __nv_bfloat16;

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
    const int64_t bytes = hopper_backward_workspace_bytes(p);
    workspace = take<char>(bytes);
    CHECK(cudaMemset(workspace, 0xff, bytes));
    CHECK(cudaDeviceSynchronize());
  }

  void run() const {
    const HopperBackwardKernel* kernel = nullptr;
    CHECK(plan_hopper_backward(0, DType::kBF16, p, &kernel));
    if (!kernel) exit((printf("FAIL no kernel\n"), 2));
    CHECK(launch_hopper_backward(*kernel, p, workspace, 0));
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

bool check(const Case& c) {
  printf("%s D=%d/%d%s\n", c.name.c_str(), c.D, c.Dv, c.deterministic ? " deterministic" : "");
  fflush(stdout);
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
  for (int i = 0; i < 50; ++i) {
    call.run();
    CHECK(cudaMemcpy(now.data(), p.dq, call.nq * 2, cudaMemcpyDeviceToHost));
    differ += now != first;
  }
  if (differ) printf("FAIL %s D=%d: %d of 50 repeats differ\n", c.name.c_str(), c.D, differ);
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
    add("in order", 2, 1000, 1000, 4, 2, causal).deterministic = true;
    cases.push_back(packed);
    cases.back().deterministic = true;
  }
  bool ok = true;
  for (const Case& c : cases) ok &= check(c);
  printf("%s D=%d/%d\n", ok ? "ok" : "FAIL", D, V);
  return ok;
}

// Median milliseconds with a cold L2 cache.
double milliseconds(const Case& c) {
  Call call(c);
  plausible_lse<<<512, 256>>>(const_cast<float*>(call.p.lse), c.S, c.K, c.causal, call.nl);
  constexpr size_t kFlush = 160 << 20;
  static void* flush = nullptr;
  if (!flush) CHECK(cudaMalloc(&flush, kFlush));
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 7; ++i) {
    CHECK(cudaMemsetAsync(flush, 0, kFlush));
    CHECK(cudaEventRecord(begin));
    call.run();
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void old_bench_dims(int D, int V) {
  for (bool deterministic : {false, true})
    for (bool causal : {false, true}) {
      printf("D=%d/%d %s%s TFLOP/s:", D, V, causal ? "causal" : "full",
             deterministic ? " deterministic" : "");
      for (int S : {512, 1024, 2048, 4096, 8192, 16384}) {
        const int H = 2048 / D;
        const Case c = {"", 16384 / S, S, S, H, H, D, V, causal, deterministic};
        const double flops = 2.0 * S * S * (3 * D + 2 * V) * H * c.B / (causal ? 2 : 1);
        printf(" %d: %.0f", S, flops / milliseconds(c) * 1e-9);
        fflush(stdout);
      }
      printf("\n");
    }
}

int main(int argc, char** argv) {
  const bool bench = argc > 1 && !strcmp(argv[1], "bench");
  const int only = argc > 2 ? atoi(argv[2]) : 0;
  bool ok = true;
  for (const HopperBackwardKernel& kernel : hopper_backward_kernels()) {
    const int D = kernel.tile.dim, V = kernel.tile.dim_v;
    if (only && D != only) continue;
    if (bench)
      bench_dims(D, V);
    else
      ok &= check_dims(D, V);
  }
  printf(ok ? "ALL OK\n" : "FAILURES\n");
  return ok ? 0 : 1;
}
