// Keys in pages: random requests, tables and options against a reference in double precision.
#include "core.h"
#ifndef DIM
#define DIM 128
#define KN 128
#endif
#ifndef FEATURES
#define FEATURES false
#endif
static constexpr HopperTile kTile = hopper_tile(FEATURES, DIM, DIM, KN, 2, 1, TileUse::kPages);
using Traits = HopperTraits<__nv_bfloat16, DIM, DIM, KN, 2, kTile.query_stages, kTile.pingpong,
                            kTile.overlap, FEATURES, TileUse::kPages, kTile.skips()>;
static const HopperForwardParams* g_p;
static Traits::Control* g_control;
static void body() {
  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == 0) {
    if (threadIdx.x < 32) Producer<Traits>(*g_p, *g_control, 0, threadIdx.x).run();
  } else
    Consumer<Traits>(*g_p, *g_control, 0, warpgroup - 1).run(Traits::kValueOffset);
}
static cudaError_t launch(const HopperForwardParams& p, int ctas, cudaStream_t) {
  g_p = &p;
  gridDim = {unsigned(ctas), 1, 1};
  static std::vector<char> smem;
  emul_smem = nullptr;
  for (int cta = 0; cta < ctas; ++cta) {
    smem.assign(Traits::kSharedBytes + 4096, 0xff);
    emul_smem = smem.data() + (1024 - (long)smem.data() % 1024);  // bf16 NaN everywhere
    blockIdx = {unsigned(cta), 0, 0};
    g_mbar.clear();
    g_control = (Traits::Control*)(emul_smem + Traits::kControlOffset);
    init_barriers<Traits>(*g_control);
    run_cta(Traits::kThreads, body);
  }
  return cudaSuccess;
}
namespace jax_baracuda {
const std::vector<HopperKernel>& hopper_kernels() {
  static const std::vector<HopperKernel> k = [] {
    HopperKernel x{};
    x.dtype = DType::kBF16;
    x.tile = kTile;
    x.prepare = [] { return cudaSuccess; };
    x.launch = launch;
    return std::vector<HopperKernel>{x};
  }();
  return k;
}
}  // namespace jax_baracuda
extern "C" {
cudaError_t cudaGetDevice(int* d) {
  *d = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
  *v = a == cudaDevAttrMultiProcessorCount ? 3 : 9;
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t) {
  memset(p, v, n);
  return cudaSuccess;
}
}
static float bf(uint16_t x) {
  __nv_bfloat16 b;
  b.x = x;
  return __bfloat162float(b);
}
int main(int argc, char** argv) {
  const int first = argc > 2 ? atoi(argv[1]) : 0, last_seed = argc > 2 ? atoi(argv[2]) : 6;
  double worst = 0, worst_lse = 0;
  long rows = 0;
  for (int seed = first; seed < last_seed; ++seed) {
    std::mt19937 rng(seed);
    g_rng.seed(seed);
    auto pick = [&](std::vector<int> v) { return v[rng() % v.size()]; };
    std::normal_distribution<float> normal;
    const int page = pick({16, 32, 48, 64, 112, 128, 160}), kv_heads = pick({1, 2}),
              group = pick({1, 2, 4, 5, 7, 20}), dim = pick({DIM, DIM - 8}),
              B = pick({1, 3, 6, 34});
    const bool nhd = rng() % 2;
    const int heads = kv_heads * group;
    std::vector<int32_t> qo{int(rng() % 4)}, indptr{int(rng() % 3)}, last;
    std::vector<int> lens;
    for (int b = 0; b < B; ++b) {
      int r = B > 10 ? pick({0, 0, 0, 1, 2}) : pick({0, 1, 1, 3, 40, 129});
      int keys = std::max(0, r + int(rng() % 400) - 6);
      if (rng() % 6 == 0) keys = 0;
      int n = (keys + page - 1) / page;
      if (keys % page == 0 && rng() % 2) ++n;
      qo.push_back(qo.back() + r);
      indptr.push_back(indptr.back() + n);
      last.push_back(n ? keys - (n - 1) * page : 7);
      lens.push_back(keys);
    }
    const int T = qo.back() + rng() % 4, N = indptr.back() + 1 + rng() % 3, P = N + 2;
    if (!T) continue;
    std::vector<int32_t> ids(N), perm(P);
    for (int i = 0; i < P; ++i) perm[i] = i;
    std::shuffle(perm.begin(), perm.end(), rng);
    for (int i = 0; i < N; ++i) ids[i] = perm[i];
    for (int i = 0; i < indptr[0]; ++i) ids[i] = -1;
    for (int i = indptr.back(); i < N; ++i) ids[i] = INT_MAX;
    std::vector<uint16_t> k(size_t(P) * kv_heads * page * dim, 0x7fff), v(k.size(), 0x7f80),
        q(size_t(T) * heads * dim);
    auto at = [&](int p, int r, int h, int c) {
      return nhd ? ((size_t(p) * page + r) * kv_heads + h) * dim + c
                 : ((size_t(p) * kv_heads + h) * page + r) * dim + c;
    };
    for (int b = 0; b < B; ++b)
      for (int j = 0; j < lens[b]; ++j)
        for (int h = 0; h < kv_heads; ++h)
          for (int c = 0; c < dim; ++c) {
            int p = ids[indptr[b] + j / page];
            k[at(p, j % page, h, c)] = __nv_bfloat16(normal(rng) * 3).x;
            v[at(p, j % page, h, c)] = __nv_bfloat16(normal(rng)).x;
          }
    for (auto& x : q) x = __nv_bfloat16(normal(rng)).x;
    for (int r = 0; r < T; ++r)
      if (r < qo[0] || r >= qo.back())
        for (int c = 0; c < heads * dim; ++c) q[size_t(r) * heads * dim + c] = 0x7fff;
    ForwardParams p = {};
    p.query = q.data();
    p.key = k.data();
    p.value = v.data();
    p.cu_seqlens_q = qo.data();
    p.pages = {ids.data(),
               indptr.data(),
               last.data(),
               N,
               P,
               int(std::min<int64_t>(1 << 30, int64_t{N} * page)),
               Divisor(page),
               uint32_t(page * kv_heads),
               uint32_t(nhd ? 1 : page),
               uint32_t(nhd ? kv_heads : 1)};
    emul_table_begin = (long)ids.data();
    emul_table_end = (long)(ids.data() + N);
    std::vector<float> sinks(heads), slopes(heads);
    for (auto& x : sinks) x = normal(rng);
    for (auto& x : slopes) x = 0.1f * normal(rng);
    p.packs = 1;
    p.sequences = B;
    p.q_rows = T;
    p.k_rows = p.max_k = p.pages.max_length;
    p.max_q = pick({1, 40, 200});
    p.heads = heads;
    p.kv_heads = kv_heads;
    p.group = group;
    p.dim = p.dim_v = dim;
    p.causal = rng() % 3 > 0;
    p.window_left = p.window_right = -1;
    if (rng() % 3 == 0) {
      p.window_left = pick({-1, 50, 130});
      p.window_right = pick({-1, 0, 20});
      p.sink_tokens = pick({0, 3, 130});
    }
    p.scale = 1.0f / sqrtf(dim);
    p.vector_q = p.vector_v = 1;
    p.dropout_scale = 1;
    if (rng() % 2) p.sinks = sinks.data();
    if (FEATURES) {
      p.soft_cap = rng() % 2 ? 5.0f : 0.0f;
      if (rng() % 2 || !p.soft_cap) p.alibi_slopes = slopes.data();
    }
    std::vector<uint16_t> out(size_t(T) * heads * dim, 0x7fff);
    std::vector<float> lse(size_t(T) * heads, NAN);
    p.out = out.data();
    p.lse = lse.data();
    p.lse_head_stride = 1;
    p.lse_row_stride = heads;
    HopperCall call;
    cudaError_t e = plan_hopper_forward(0, DType::kBF16, p, 256, &call);
    CHECK(e == cudaSuccess && call.kernel, "plan");
    alignas(16) static char workspace[256];
    memset(workspace, 0x77, 256);
    e = launch_hopper_forward(call, p, workspace, nullptr);
    CHECK(e == cudaSuccess, "launch");
    for (int r = 0; r < T; ++r) {
      int b = -1;
      for (int x = 0; x < B; ++x)
        if (qo[x] <= r && r < qo[x + 1]) b = x;
      for (int h = 0; h < heads; ++h) {
        std::vector<double> want(dim, 0.0);
        double sum = 0, top = -INFINITY;
        std::vector<double> s;
        if (b >= 0) {
          Sequence sq = find_request(p, b);
          Visibility vis(p, sq);
          const int i = r - qo[b];
          for (int j = 0; j < lens[b]; ++j) {
            double x = -INFINITY;
            if (vis(i, j)) {
              x = 0;
              for (int c = 0; c < dim; ++c)
                x += double(bf(q[(size_t(r) * heads + h) * dim + c])) *
                     bf(k[at(ids[indptr[b] + j / page], j % page, h / group, c)]);
              x *= p.scale;
              if (p.soft_cap > 0) x = p.soft_cap * tanh(x / p.soft_cap);
              if (p.alibi_slopes) x -= slopes[h] * abs(i + sq.k_rows - sq.q_rows - j);
            }
            s.push_back(x);
            top = std::max(top, x);
          }
        }
        if (top > -INFINITY) {
          for (size_t j = 0; j < s.size(); ++j) {
            double w = exp(s[j] - top);
            sum += w;
            if (w)
              for (int c = 0; c < dim; ++c)
                want[c] += w * bf(v[at(ids[indptr[b] + j / page], j % page, h / group, c)]);
          }
          if (p.sinks) sum += exp(sinks[h] - top);
        }
        const double want_lse = sum ? top + log(sum) : -INFINITY;
        const float got_lse = lse[size_t(r) * heads + h];
        if (!sum)
          CHECK(got_lse == -INFINITY, "lse of nothing: %f row %d", got_lse, r);
        else {
          worst_lse = std::max(worst_lse, fabs(want_lse - got_lse));
          CHECK(fabs(want_lse - got_lse) < 2e-3 + 1e-4 * fabs(want_lse),
                "seed %d lse row %d head %d %f want %f", seed, r, h, got_lse, want_lse);
        }
        for (int c = 0; c < dim; ++c) {
          const double w = sum ? want[c] / sum : 0, g = bf(out[(size_t(r) * heads + h) * dim + c]);
          worst = std::max(worst, fabs(w - g));
          CHECK(fabs(w - g) <= 0.01 + 0.01 * fabs(w),
                "seed %d out row %d head %d col %d: %f want %f", seed, r, h, c, g, w);
        }
        ++rows;
      }
    }
    fflush(stdout);
  }
  printf("ok: %ld rows, worst %g, lse %g\n", rows, worst, worst_lse);
}
