// Paged prefill, values loaded by the warp that loads keys or by a second one (by what -I says), with a checksum of the output.
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <algorithm>
#include <vector>

#include "attention/hopper/dispatch.cc"
#include "attention/hopper/inst/kernel.cuh"

namespace jax_baracuda {
const std::vector<HopperKernel>& hopper_kernels() {
  static const std::vector<HopperKernel> kernels = {
      hopper_kernel_entry<DType::kBF16, 64, 64, 128, 2, 1, 0, TileUse::kPages>(),
      hopper_kernel_entry<DType::kBF16, 128, 128, 128, 2, 1, 0, TileUse::kPages>(),
      hopper_kernel_entry<DType::kBF16, 256, 256, 80, 2, 1, 0, TileUse::kPages>(),
  };
  return kernels;
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
    float sum = 0.0f;
    for (int k = 0; k < 4; ++k) {
      h ^= h << 13, h ^= h >> 17, h ^= h << 5;
      sum += (h >> 8) * (1.0f / (1 << 24)) - 0.5f;
    }
    x[i] = T(1.732f * sum);
  }
}
__global__ void sum(const T* x, int64_t n, double* to) {
  double s = 0, a = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    const double y = double(float(x[i]));
    s += y * double((2654435761ull * i >> 7) % 1000), a += y < 0 ? -y : y;
  }
  atomicAdd(to, s); atomicAdd(to + 1, a);
}
template <class X>
X* upload(const std::vector<X>& x) {
  X* to;
  CHECK(cudaMalloc(&to, x.size() * sizeof(X) + 4));
  CHECK(cudaMemcpy(to, x.data(), x.size() * sizeof(X), cudaMemcpyHostToDevice));
  return to;
}
void run(const char* name, std::vector<int> rows, std::vector<int> keys, int dim, int page) {
  const int kv_heads = 8, heads = 32, n = rows.size();
  std::vector<int> cu = {0}, indptr = {0}, last;
  for (int i = 0; i < n; ++i) {
    cu.push_back(cu.back() + rows[i]);
    indptr.push_back(indptr.back() + (keys[i] + page - 1) / page);
    last.push_back((keys[i] - 1) % page + 1);
  }
  std::vector<int> ids(indptr.back());
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
  const int64_t q_elements = int64_t{cu.back()} * heads * dim, store = int64_t(ids.size()) * page * kv_heads * dim;
  T *q, *k, *v, *out;
  float* lse;
  unsigned char* workspace;
  double* check;
  CHECK(cudaMalloc(&q, q_elements * 2)); CHECK(cudaMalloc(&out, q_elements * 2));
  CHECK(cudaMalloc(&k, store * 2)); CHECK(cudaMalloc(&v, store * 2));
  CHECK(cudaMalloc(&lse, q_elements / dim * 4)); CHECK(cudaMalloc(&workspace, 1 << 20)); CHECK(cudaMalloc(&check, 16));
  fill<<<1024, 256>>>(q, q_elements, 1); fill<<<1024, 256>>>(k, store, 2); fill<<<1024, 256>>>(v, store, 3);
  CHECK(cudaMemset(out, 0xff, q_elements * 2)); CHECK(cudaMemset(check, 0, 16));
  ForwardParams p = {};
  p.query = q, p.key = k, p.value = v, p.out = out, p.lse = lse;
  p.packs = 1, p.sequences = n;
  p.q_rows = cu.back(), p.max_q = *std::max_element(rows.begin(), rows.end());
  p.k_rows = p.max_k = *std::max_element(keys.begin(), keys.end());
  p.heads = heads, p.kv_heads = kv_heads, p.group = heads / kv_heads, p.dim = p.dim_v = dim;
  p.causal = true, p.window_left = p.window_right = -1;
  p.scale = 1.0f / std::sqrt(static_cast<float>(dim)), p.dropout_scale = 1.0f;
  p.vector_q = p.vector_v = 1;
  p.lse_head_stride = 1, p.lse_row_stride = heads;
  p.cu_seqlens_q = upload(cu);
  p.pages.indices = upload(ids), p.pages.indptr = upload(indptr), p.pages.last_page_len = upload(last);
  p.pages.entries = p.pages.pages = ids.size(), p.pages.max_length = 1 << 20;
  p.pages.page_size = Divisor(page);
  p.pages.page_stride = kv_heads * page, p.pages.head_stride = page, p.pages.token_stride = 1;
  HopperCall call;
  CHECK(plan_hopper_forward(0, DType::kBF16, p, 1 << 20, &call));
  if (!call.kernel) { std::puts("no plan"); std::exit(1); }
  cudaEvent_t e0, e1;
  CHECK(cudaEventCreate(&e0)); CHECK(cudaEventCreate(&e1));
  std::vector<float> times;
  for (int r = -3; r < 15; ++r) {
    CHECK(cudaEventRecord(e0));
    CHECK(launch_hopper_forward(call, p, workspace, 0));
    CHECK(cudaEventRecord(e1));
    CHECK(cudaEventSynchronize(e1));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, e0, e1));
    if (r >= 0) times.push_back(ms * 1000);
  }
  sum<<<264, 256>>>(out, q_elements, check);
  double s[2];
  CHECK(cudaMemcpy(s, check, 16, cudaMemcpyDeviceToHost));
  std::sort(times.begin(), times.end());
  std::printf("  %-24s D %3d page %3d  %8.1f us  sum %.6e %.6e\n", name, dim, page, times[times.size() / 2], s[0], s[1]);
  std::fflush(stdout);
  for (const void* x : {(const void*)q, (const void*)k, (const void*)v, (const void*)out, (const void*)lse, (const void*)workspace}) CHECK(cudaFree(const_cast<void*>(x)));
}
}  // namespace jax_baracuda
int main() {
  using namespace jax_baracuda;
  for (int dim : {128, 64, 256})
    for (int page : {16, 32, 64, 128}) {
      run("8 x 512 behind 4096", std::vector<int>(8, 512), std::vector<int>(8, 4608), dim, page);
      run("4 prompts of 2048", std::vector<int>(4, 2048), std::vector<int>(4, 2048), dim, page);
      std::vector<int> rows(8, 512), keys(8, 4608);
      for (int i = 0; i < 56; ++i) rows.push_back(1), keys.push_back(512 + 137 * i);
      run("beside 56 decodes", rows, keys, dim, page);
    }
}
