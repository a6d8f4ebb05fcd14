// Test harness: random layers, reference in float64, cuBLAS by dlopen, timing by CUDA graphs over rotated copies.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <cstdio>
#include <cstdlib>
#include <cmath>
#include <cstring>
#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <vector>
#include "int4/params.h"

using namespace jax_baracuda;

#define CHECK(call) do { cudaError_t e_ = (call); if (e_ != cudaSuccess) { printf("CUDA error %s at %s:%d: %s\n", cudaGetErrorName(e_), __FILE__, __LINE__, #call); fflush(stdout); exit(2); } } while (0)

static int g_failures = 0;
static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
static double g_start = now();
static double elapsed() { return now() - g_start; }

__host__ __device__ inline uint32_t mix(uint64_t x) {
  x ^= x >> 33; x *= 0xff51afd7ed558ccdull; x ^= x >> 33; x *= 0xc4ceb9fe1a85ec53ull; x ^= x >> 33; return (uint32_t)x;
}
__device__ inline float uniform(uint64_t i) { return (mix(i) >> 8) * (1.0f / 16777216.0f); }
__device__ inline float normal(uint64_t i) { float u = fmaxf(uniform(2 * i), 1e-7f), v = uniform(2 * i + 1); return sqrtf(-2.0f * logf(u)) * cosf(6.2831853f * v); }

template <class T> __device__ T to_t(float x) { return T(x); }

template <class T> __global__ void fill_normal(T* p, int64_t n, uint64_t seed, float scale) {
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) p[i] = to_t<T>(normal(i + (seed << 40)) * scale);
}
__global__ void fill_bytes(uint32_t* p, int64_t n, uint64_t seed) {
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) p[i] = mix(i + (seed << 40));
}
// Scales for real channels (0 for padding), zeros by mode: 0..16 random; -1: all of them random in 0..16.
template <class T> __global__ void fill_scales(T* s, uint8_t* z, int64_t groups, int oc, int ocp, uint64_t seed, int zero) {
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < groups * ocp; i += (int64_t)gridDim.x * blockDim.x) {
    const bool real = i % ocp < oc;
    s[i] = to_t<T>(real ? 0.005f + 0.02f * uniform(i + (seed << 40)) : 0.0f);
    z[i] = real ? (zero >= 0 ? zero : mix(i + ((seed + 7) << 40)) % 17) : 0;
  }
}
__host__ __device__ inline int nibble(int64_t ic, int64_t oc, uint64_t seed) { return mix((ic << 24) + oc + (seed << 48)) & 15; }
__global__ void pack(uint8_t* packed, int ic, int oc, int kt, int strips, uint64_t seed) {  // packed cleared before
  const int64_t n = (int64_t)kt * 64 * strips * 32;  // pairs of channels
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
    const int64_t k = i / (strips * 32), c = i % (strips * 32) * 2;
    int lo = k < ic && c < oc ? nibble(k, c, seed) : 0, hi = k < ic && c + 1 < oc ? nibble(k, c + 1, seed) : 0;
    const int64_t byte = ((c / 64 * kt + k / 64) * 128 + (c % 64 / 16) * 32 + (c % 16 / 2) * 4 + k % 8 / 2) * 16 + (k % 64 / 16) * 4 + k % 2 * 2 + k % 16 / 8;
    packed[byte] = lo | hi << 4;
  }
}
template <class T> __global__ void reference(double* out, const T* x, const T* s, const uint8_t* z, const T* bias, int64_t m, int columns, int ic, int oc, int ocp, int group, uint64_t seed) {
  const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
  if (i >= m * oc) return;
  const int64_t row = i / oc, c = i % oc;
  double sum = bias ? (double)(float)bias[c] : 0;
  for (int k = 0; k < ic; ++k) sum += (double)(float)x[row * columns + k] * ((double)(nibble(k, c, seed) - (int)z[(int64_t)(k / group) * ocp + c]) * (double)(float)s[(int64_t)(k / group) * ocp + c]);
  out[i] = sum;
}
// Frobenius error and mistakes of NaN-ness.
template <class T> __global__ void compare(const T* out, const double* ref, int64_t n, double* acc) {
  double err = 0, norm = 0, bad = 0;
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
    const double o = (double)(float)out[i], r = ref[i];
    if (isfinite(r)) { if (!isfinite(o)) bad += 1; else { err += (o - r) * (o - r); norm += r * r; } }
    else if (isfinite(o)) bad += 1;
  }
  atomicAdd(acc, err); atomicAdd(acc + 1, norm); atomicAdd(acc + 2, bad);
}

template <class T> constexpr DType dtype_of();
template <> constexpr DType dtype_of<__half>() { return DType::kF16; }
template <> constexpr DType dtype_of<__nv_bfloat16>() { return DType::kBF16; }

template <class P> P* device_alloc(int64_t count) { void* p; CHECK(cudaMalloc(&p, std::max<int64_t>(count * sizeof(P), 256))); return (P*)p; }

// run(params, shape) launches on the stream.
using Launch = std::function<cudaError_t(const Int4Shape&, Int4Params, cudaStream_t)>;

struct Case { int64_t m; int ic, oc, group; int zero; bool bias; int poison; };  // group 0: per channel. poison: row with NaN, -1: none

template <class T>
static bool check(const char* name, const Launch& launch, const Case& c, float* workspace = nullptr, bool print_ok = false) {
  const int kt = (c.ic + 63) / 64, strips = (c.oc + 63) / 64, ocp = strips * 64, columns = (c.ic + 7) / 8 * 8;
  const int group = c.group ? c.group : kt * 64;
  const int groups = (kt * 64 + group - 1) / group;
  const uint64_t seed = 1 + c.m * 31 + c.ic * 7 + c.oc;
  T* x = device_alloc<T>(c.m * columns); uint8_t* packed = device_alloc<uint8_t>((int64_t)strips * kt * 2048);
  T* s = device_alloc<T>((int64_t)groups * ocp); uint8_t* z = device_alloc<uint8_t>((int64_t)groups * ocp);
  T* bias = device_alloc<T>(c.oc); T* out = device_alloc<T>(c.m * c.oc + 64); double* ref = device_alloc<double>(c.m * c.oc); double* acc = device_alloc<double>(3);
  fill_normal<<<512, 256>>>(x, c.m * columns, seed, 1.0f);
  if (columns != c.ic) for (int64_t r = 0; r < c.m; ++r) CHECK(cudaMemset(x + r * columns + c.ic, 0, (columns - c.ic) * sizeof(T)));
  if (c.poison >= 0) CHECK(cudaMemset(x + c.poison * (int64_t)columns, 0xff, 16));
  fill_normal<<<64, 256>>>(bias, c.oc, seed + 1, 1.0f);
  fill_scales<<<512, 256>>>(s, z, groups, c.oc, ocp, seed, c.zero);
  pack<<<1024, 256>>>(packed, c.ic, c.oc, kt, strips, seed);
  CHECK(cudaMemset(out, 0xee, (c.m * c.oc + 64) * sizeof(T)));
  CHECK(cudaMemset(acc, 0, 24));
  reference<<<(unsigned)((c.m * c.oc + 127) / 128), 128>>>(ref, x, s, z, c.bias ? bias : nullptr, c.m, columns, c.ic, c.oc, ocp, group, seed);
  CHECK(cudaGetLastError());
  CHECK(cudaDeviceSynchronize());
  Int4Shape shape; shape.dtype = dtype_of<T>(); shape.rows = c.m; shape.columns = columns; shape.channels = c.oc; shape.strips = strips; shape.depth_tiles = kt; shape.group_size = group;
  Int4Params p = {}; p.x = x; p.packed = packed; p.scales = s; p.zeros = z; p.bias = c.bias ? bias : nullptr; p.out = out; p.partials = workspace;
  p.rows = (int)c.m; p.columns = columns; p.channels = c.oc; p.strips = strips; p.depth_tiles = kt; p.group_tiles = Divisor(std::max(group / 64, 1)); p.splits = 1;
  double worst = 0; bool ok = true; std::vector<char> first(c.m * c.oc * sizeof(T)), again(first.size());
  for (int repeat = 0; repeat < 2 && ok; ++repeat) {
    CHECK(cudaMemset(out, 0xee, c.m * c.oc * sizeof(T)));
    cudaError_t e = launch(shape, p, nullptr);
    if (e == cudaSuccess) e = cudaDeviceSynchronize();
    if (e != cudaSuccess) { printf("FAIL %s: %s (M %ld IC %d OC %d g %d)\n", name, cudaGetErrorString(e), (long)c.m, c.ic, c.oc, c.group); fflush(stdout); ++g_failures; exit(3); }
    CHECK(cudaMemcpy(repeat ? again.data() : first.data(), out, first.size(), cudaMemcpyDeviceToHost));
  }
  if (first != again) { ok = false; printf("  not deterministic: "); }
  std::vector<unsigned char> guard(64 * sizeof(T)); CHECK(cudaMemcpy(guard.data(), out + c.m * c.oc, guard.size(), cudaMemcpyDeviceToHost));
  for (unsigned char g : guard) if (g != 0xee) { ok = false; printf("  wrote past the end: "); break; }
  compare<<<256, 256>>>(out, ref, c.m * c.oc, acc); double a[3]; CHECK(cudaMemcpy(a, acc, 24, cudaMemcpyDeviceToHost));
  worst = std::sqrt(a[0] / std::max(a[1], 1e-300));
  const double limit = sizeof(T) == 2 && dtype_of<T>() == DType::kF16 ? 5e-4 : 3e-3;
  ok = ok && worst < limit && a[2] == 0;
  if (!ok) ++g_failures;
  if (!ok || print_ok) printf("%s %-22s %s M %4ld IC %5d OC %5d g %4d zero %2d bias %d: error %.2e, wrong NaNs %.0f\n", ok ? "ok  " : "FAIL", name, dtype_of<T>() == DType::kF16 ? "f16 " : "bf16", (long)c.m, c.ic, c.oc, c.group, c.zero, c.bias, worst, a[2]);
  for (void* q : {(void*)x, (void*)packed, (void*)s, (void*)z, (void*)bias, (void*)out, (void*)ref, (void*)acc}) cudaFree(q);
  fflush(stdout);
  return ok;
}

// ---- cuBLAS by dlopen ----
struct Cublas {
  void* handle = nullptr;
  int (*set_stream)(void*, cudaStream_t);
  int (*gemm)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*, void*, int, int, int, int);
  bool load() {
    void* lib = nullptr;
    for (const char* n : {"libcublas.so.13", "libcublas.so", "/usr/local/cuda/lib64/libcublas.so.13", "/usr/local/cuda/targets/x86_64-linux/lib/libcublas.so.13", "/usr/local/cuda/lib64/libcublas.so", "libcublas.so.12"}) if ((lib = dlopen(n, RTLD_NOW | RTLD_GLOBAL))) break;
    if (!lib) { printf("no cuBLAS: %s\n", dlerror()); return false; }
    auto create = (int (*)(void**))dlsym(lib, "cublasCreate_v2");
    auto set_ws = (int (*)(void*, void*, size_t))dlsym(lib, "cublasSetWorkspace_v2");
    set_stream = (decltype(set_stream))dlsym(lib, "cublasSetStream_v2"); gemm = (decltype(gemm))dlsym(lib, "cublasGemmEx");
    if (!create || !gemm || create(&handle)) return false;
    void* ws; CHECK(cudaMalloc(&ws, 64 << 20)); saved_ws = ws; set_workspace = set_ws;
    return true;
  }
  void* saved_ws; int (*set_workspace)(void*, void*, size_t);
  // out [m, oc] = x [m, ic] w [oc, ic]^T (the faster of the layouts is chosen by the caller)
  template <class T> int run(const T* x, const T* w, T* out, int m, int ic, int oc, cudaStream_t s, bool nt) {
    const float one = 1, zero = 0; const int type = dtype_of<T>() == DType::kF16 ? 2 : 14;
    set_stream(handle, s); set_workspace(handle, saved_ws, 64 << 20);
    // column-major: C^T [oc, m] = W . X
    return nt ? gemm(handle, 1, 0, oc, m, ic, &one, w, type, ic, x, type, ic, &zero, out, type, oc, 68, -1)
              : gemm(handle, 0, 0, oc, m, ic, &one, w, type, oc, x, type, ic, &zero, out, type, oc, 68, -1);
  }
};

// SM clock: one CTA an SM, that of SM 0 writes its clock and the time.
__global__ void __launch_bounds__(1024) read_clock(unsigned long long* to) {
  uint32_t sm; asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  if (sm == 0 && threadIdx.x == 0) { unsigned long long t; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)); to[0] = clock64(); to[1] = t; }
}
static double g_ghz; static unsigned long long* g_clocks;
// Microseconds of one of `count` launches body(i), by a graph replayed `rounds` times.
static double time_graph(int count, const std::function<void(int, cudaStream_t)>& body, int rounds = 5) {
  cudaStream_t s; CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  cudaGraph_t graph; cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; ++i) body(i, s);
  CHECK(cudaStreamEndCapture(s, &graph)); CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t a, b; CHECK(cudaEventCreate(&a)); CHECK(cudaEventCreate(&b));
  CHECK(cudaGraphLaunch(exec, s)); CHECK(cudaStreamSynchronize(s));
  std::vector<double> t; if (!g_clocks) { g_clocks = device_alloc<unsigned long long>(4); CHECK(cudaFuncSetAttribute(read_clock, cudaFuncAttributeMaxDynamicSharedMemorySize, 200000)); }
  for (int r = 0; r < rounds; ++r) {
    read_clock<<<132, 1024, 200000, s>>>(g_clocks);
    CHECK(cudaEventRecord(a, s)); CHECK(cudaGraphLaunch(exec, s)); CHECK(cudaEventRecord(b, s)); read_clock<<<132, 1024, 200000, s>>>(g_clocks + 2); CHECK(cudaStreamSynchronize(s));
    unsigned long long c[4]; CHECK(cudaMemcpy(c, g_clocks, 32, cudaMemcpyDeviceToHost)); if (c[3] > c[1]) g_ghz = (double)(c[2] - c[0]) / (c[3] - c[1]);
    float ms; CHECK(cudaEventElapsedTime(&ms, a, b)); t.push_back(ms * 1e3 / count);
  }
  std::sort(t.begin(), t.end());
  cudaGraphExecDestroy(exec); cudaGraphDestroy(graph); cudaEventDestroy(a); cudaEventDestroy(b); cudaStreamDestroy(s);
  return t[t.size() / 2];
}

// Only reads the packed bytes of a layer: the floor in practice.
__global__ void __launch_bounds__(512) read_only(const uint4* p, int64_t n, int* out) {
  uint32_t v = 0; const int64_t step = (int64_t)gridDim.x * blockDim.x;
  int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
  for (; i + 7 * step < n; i += 8 * step) {
    uint4 r[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(r[j].x), "=r"(r[j].y), "=r"(r[j].z), "=r"(r[j].w) : "l"(p + i + j * step));
#pragma unroll
    for (int j = 0; j < 8; ++j) v ^= r[j].x ^ r[j].y ^ r[j].z ^ r[j].w;
  }
  for (; i < n; i += step) { uint4 r = p[i]; v ^= r.x ^ r.y ^ r.z ^ r.w; }
  if (v == 0x12345678) *out = v;
}

template <class T>
struct Layer {  // one shape, with copies of the weights that rotate past L2
  int ic, oc, group, copies, dense_copies; int kt, strips; int64_t max_m;
  uint8_t* packed; T* scales; uint8_t* zeros; T* dense; T* x; T* out; T* out2; int* sink;
  int64_t packed_bytes, scale_count;
  Layer(int ic, int oc, int group, int64_t max_m, bool with_dense) : ic(ic), oc(oc), group(group), max_m(max_m) {
    kt = ic / 64; strips = oc / 64; packed_bytes = (int64_t)kt * strips * 2048; scale_count = (int64_t)(ic / group) * oc;
    copies = (int)std::max<int64_t>(3, 260000000 / packed_bytes); dense_copies = (int)std::max<int64_t>(3, 400000000 / (2ll * ic * oc));
    packed = device_alloc<uint8_t>(packed_bytes * copies); scales = device_alloc<T>(scale_count * copies); zeros = device_alloc<uint8_t>(scale_count * copies);
    x = device_alloc<T>(max_m * ic); out = device_alloc<T>(max_m * oc); out2 = device_alloc<T>(max_m * oc); sink = device_alloc<int>(4);
    dense = with_dense ? device_alloc<T>((int64_t)ic * oc * dense_copies) : nullptr;
    fill_normal<<<1024, 256>>>(x, max_m * ic, 3, 1.0f);
    fill_bytes<<<1024, 256>>>((uint32_t*)packed, packed_bytes * copies / 4, 5);
    fill_scales<<<1024, 256>>>(scales, zeros, (int64_t)(ic / group) * copies, oc, oc, 7, -1);
    if (dense) fill_normal<<<2048, 256>>>(dense, (int64_t)ic * oc * dense_copies, 9, 0.02f);
    CHECK(cudaDeviceSynchronize());
  }
  ~Layer() { for (void* q : {(void*)packed, (void*)scales, (void*)zeros, (void*)dense, (void*)x, (void*)out, (void*)out2, (void*)sink}) cudaFree(q); }
  Int4Shape shape(int64_t m) const { Int4Shape s; s.dtype = dtype_of<T>(); s.rows = m; s.columns = ic; s.channels = oc; s.strips = strips; s.depth_tiles = kt; s.group_size = group; return s; }
  Int4Params params(int64_t m, int copy) const {
    Int4Params p = {}; p.x = x; p.packed = packed + packed_bytes * copy; p.scales = scales + scale_count * copy; p.zeros = zeros + scale_count * copy; p.out = out;
    p.rows = (int)m; p.columns = ic; p.channels = oc; p.strips = strips; p.depth_tiles = kt; p.group_tiles = Divisor(std::max(group / 64, 1)); p.splits = 1; return p;
  }
  double time(const Launch& launch, int64_t m, int rounds = 5, double budget_us = 6000) {
    const double guess = std::max(6.0, std::max(packed_bytes / 4e6, 2.0 * m * ic * oc / 6e8));
    const int count = (int)std::min<double>(2 * copies, std::max<double>(copies > 8 ? copies : 3, budget_us / guess));
    return time_graph(count, [&](int i, cudaStream_t s) { CHECK(launch(shape(m), params(m, i % copies), s)); }, rounds);
  }
  double time_cublas(Cublas& c, int64_t m, int rounds = 5, double budget_us = 8000) {
    double best = 1e30;
    for (bool nt : {true, false}) {
      for (int i = 0; i < 2; ++i) c.run(x, dense, out2, (int)m, ic, oc, nullptr, nt);
      CHECK(cudaDeviceSynchronize());
      const double guess = std::max(8.0, std::max(2.0 * ic * oc / 4e6, 2.0 * m * ic * oc / 6e8));
      const int count = (int)std::max<double>(dense_copies, std::min<double>(2 * dense_copies, budget_us / guess));
      best = std::min(best, time_graph(count, [&](int i, cudaStream_t s) { if (c.run(x, dense + (int64_t)(i % dense_copies) * ic * oc, out2, (int)m, ic, oc, s, nt)) { printf("cuBLAS failed\n"); exit(4); } }, rounds));
    }
    return best;
  }
  double time_read() {
    return time_graph(2 * copies, [&](int i, cudaStream_t s) { read_only<<<264, 512, 0, s>>>((const uint4*)(packed + packed_bytes * (i % copies)), packed_bytes / 16, sink); });
  }
};
