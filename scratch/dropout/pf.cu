#define LIST "empty.inc"
#include "bench.cu"

#include "attention/forward/inst/kernel.cuh"
namespace jax_baracuda {
const std::vector<ForwardKernel>& forward_kernels() {
  static const std::vector<ForwardKernel> k = {forward_kernel_entry<DType::kBF16, 64, 64, 128, 64, true, false>(), forward_kernel_entry<DType::kBF16, 128, 128, 128, 32, true, false>()};
  return k;
}
int portable_main() {
  CHECK(cudaMalloc(&g_sums, 64));
  for (int dim : {64, 128}) for (bool causal : {true, false}) for (double rate : {0.0, 0.1, 0.9, 0.001}) {
    Buffers b(2, 1000, 1333, 4, 2, dim, causal);
    std::vector<uint4> seeds; for (int i = 0; i < 8; ++i) seeds.push_back(uint4{77, 123456789, uint32_t(i % 4), uint32_t(i / 4)});
    uint4* d; CHECK(cudaMalloc(&d, 128)); b.own.push_back(d); CHECK(cudaMemcpy(d, seeds.data(), 128, cudaMemcpyHostToDevice));
    b.p.dropout_seed = d; b.p.dropout_threshold = uint32_t(rate * 32768 + .5); b.p.dropout_scale = 32768.0 / (32768 - b.p.dropout_threshold);
    ForwardPlan plan;
    CHECK(plan_attention_forward(DType::kBF16, b.p, true, 1 << 20, &plan));
    if (!plan.portable) { std::printf("no kernel\n"); return 1; }
    CHECK(launch_attention_forward(plan, b.p, b.workspace, 0));
    CHECK(cudaMemset(g_sums, 0, 24));
    reference<<<600, 128, b.p.k_rows * 4>>>(b.p, 13, g_sums);
    double s[3]; CHECK(cudaMemcpy(s, g_sums, 24, cudaMemcpyDeviceToHost));
    const double e = std::sqrt(s[0] / s[1]);
    std::printf("portable D%d causal %d rate %g: error %.1e LSE %.1e %s\n", dim, causal, rate, e, s[2], e < 6e-3 && s[2] < 2e-3 ? "ok" : "WRONG");
  }
  return 0;
}
}
int main() { return jax_baracuda::portable_main(); }
