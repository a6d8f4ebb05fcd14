// Contiguous keys: random calls and options against a reference in double precision. -DUSE=kAny, kDiagonal, kFewTiles.
#include "core.h"
#ifndef USE
#define USE kDiagonal
#endif
#ifndef GROUPS
#define GROUPS 2
#endif
#ifndef QS
#define QS 1
#endif
#ifndef DIM
#define DIM 128
#define KN 128
#endif
#ifndef DIMV
#define DIMV DIM
#endif
#ifndef FEATURES
#define FEATURES false
#endif
static constexpr HopperTile kTile = hopper_tile(FEATURES, DIM, DIMV, KN, GROUPS, QS, TileUse::USE);
using Traits = HopperTraits<__nv_bfloat16, DIM, DIMV, KN, GROUPS, kTile.query_stages,
                            kTile.pingpong, kTile.overlap, FEATURES, TileUse::USE, kTile.skips()>;
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
static cudaError_t combine(const HopperForwardParams& params, cudaStream_t) {
  const ForwardParams& p = params.problem;
  const int64_t rows = int64_t{p.packs} * p.q_rows;
  for (int64_t r = 0; r < rows; ++r)
    for (int h = 0; h < p.heads; ++h) {
      double sum = 0;
      for (int s = 0; s < params.few.splits; ++s)
        sum += exp(params.few.lse[(s * rows + r) * p.heads + h]);
      const double all = sum;
      if (sum && p.sinks)
        sum += exp(p.sinks[h + (p.sinks_stride ? r / p.q_rows * p.sinks_stride : 0)]);
      for (int c = 0; c < p.dim_v; ++c) {
        double x = 0;
        for (int s = 0; s < params.few.splits; ++s) {
          const double w = exp(params.few.lse[(s * rows + r) * p.heads + h]);
          if (w) x += w * params.few.out[((s * rows + r) * p.heads + h) * p.dim_v + c];
        }
        ((__nv_bfloat16*)p.out)[(r * p.heads + h) * p.dim_v + c] =
            __nv_bfloat16(float(all ? x / sum : 0));
      }
      p.lse[(r / p.q_rows) * p.heads * p.q_rows + h * p.lse_head_stride +
            r % p.q_rows * p.lse_row_stride] = all ? log(sum) : -INFINITY;
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
    x.combine = combine;
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
    const int B = pick({1, 2}), S = pick({1, 5, 64, 129, 200, 300}),
              K = pick({1, 64, 127, 128, 200, 300, 385, 511}), kv_heads = pick({1, 2}),
              group = pick({1, 2, 4, 5, 7}), dim = pick({DIM, DIM - 8}),
              dim_v = pick({DIMV, DIMV - 8}), heads = kv_heads * group;
    const bool packed_call = rng() % 3 == 0;
    std::vector<uint16_t> q(size_t(B) * S * heads * dim), k(size_t(B) * K * kv_heads * dim),
        v(size_t(B) * K * kv_heads * dim_v);
    for (auto* x : {&q, &k, &v})
      for (auto& e : *x) e = __nv_bfloat16(normal(rng) * (x == &k ? 3 : 1)).x;
    const int sequences = packed_call ? 3 : 1;
    std::vector<int32_t> cq, ck;
    for (int b = 0; b < B; ++b)
      for (auto* c : {&cq, &ck}) {
        const int n = c == &cq ? S : K;
        std::vector<int> x{int(rng() % 3), n - int(rng() % 3), int(rng() % (n + 1)),
                           int(rng() % (n + 1))};
        for (auto& e : x) e = clamped(e, 0, n);
        std::sort(x.begin(), x.end());
        c->insert(c->end(), x.begin(), x.end());
      }
    std::vector<int32_t> ql, kl;
    for (int b = 0; b < B; ++b) {
      ql.push_back(rng() % (S + 2));
      kl.push_back(rng() % (K + 2));
    }
    std::vector<int32_t> qs(B * S), ks(B * K);
    for (auto& x : qs) x = rng() % 2;
    for (auto& x : ks) x = rng() % 2;
    std::vector<float> sinks(heads), slopes(heads);
    for (auto& x : sinks) x = normal(rng);
    for (auto& x : slopes) x = 0.1f * normal(rng);
    ForwardParams p = {};
    p.query = q.data();
    p.key = k.data();
    p.value = v.data();
    p.packs = B;
    p.sequences = sequences;
    p.q_rows = p.max_q = S;
    p.k_rows = p.max_k = K;
    p.heads = heads;
    p.kv_heads = kv_heads;
    p.group = group;
    p.dim = dim;
    p.dim_v = dim_v;
    if (packed_call) {
      p.cu_seqlens_q = cq.data();
      p.cu_seqlens_k = ck.data();
      p.max_q = pick({S, std::max(1, S / 3)});
    } else {
      if (rng() % 3 == 0) p.query_lengths = ql.data();
      if (rng() % 2) p.kv_lengths = kl.data();
    }
    if (rng() % 5 == 0) {
      p.query_segments = qs.data();
      p.kv_segments = ks.data();
    }
    p.causal = rng() % 4 > 0;
    p.top_left = rng() % 5 == 0;
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
    for (int b = 0; b < B * sequences; ++b) {
      Sequence s = find_sequence(p, b);
      if (p.kv_lengths && !packed_call)
        for (int64_t j = s.k_first + s.kv_len; j < s.k_first + K; ++j) {
          for (int c = 0; c < kv_heads * dim; ++c) k[j * kv_heads * dim + c] = 0x7fff;
          for (int c = 0; c < kv_heads * dim_v; ++c) v[j * kv_heads * dim_v + c] = 0x7fff;
        }
    }
    std::vector<uint16_t> out(size_t(B) * S * heads * dim_v, 0x7fff);
    std::vector<float> lse(size_t(B) * S * heads, NAN);
    p.out = out.data();
    p.lse = lse.data();
    p.lse_head_stride = S;
    p.lse_row_stride = 1;
    HopperCall call;
    call.kernel = &hopper_kernels()[0];
    call.plan.tile = &call.kernel->tile;
    if ((TileUse::USE == TileUse::kFewTiles)) {
      call.plan.packed = rng() % 2 ? group : 1;
      call.plan.splits = pick({1, 2, 3, 5});
    }
    std::vector<char> workspace(1024 + call.plan.splits * split_bytes(p), 0x7f);
    const cudaError_t e = launch_hopper_forward(call, p, workspace.data(), nullptr);
    CHECK(e == cudaSuccess, "launch");
    std::vector<char> done(size_t(B) * S * heads);
    for (int n = 0; n < B * sequences; ++n) {
      Sequence sq = find_sequence(p, n);
      Visibility vis(p, sq);
      for (int i = 0; i < sq.q_rows; ++i)
        for (int h = 0; h < heads; ++h) {
          const int64_t r = sq.q_first + i;
          done[r * heads + h] = 1;
          std::vector<double> want(dim_v, 0.0), s(sq.k_rows, -INFINITY);
          double sum = 0, top = -INFINITY;
          for (int j = 0; j < sq.k_rows; ++j)
            if (vis(i, j) && (!p.query_segments || qs[r] == ks[sq.k_first + j])) {
              double x = 0;
              for (int c = 0; c < dim; ++c)
                x += double(bf(q[(r * heads + h) * dim + c])) *
                     bf(k[((sq.k_first + j) * kv_heads + h / group) * dim + c]);
              x *= p.scale;
              if (p.soft_cap > 0) x = p.soft_cap * tanh(x / p.soft_cap);
              if (p.alibi_slopes) x -= slopes[h] * abs(i + vis.offset - j);
              s[j] = x;
              top = std::max(top, x);
            }
          if (top > -INFINITY) {
            for (int j = 0; j < sq.k_rows; ++j) {
              const double w = exp(s[j] - top);
              sum += w;
              if (w)
                for (int c = 0; c < dim_v; ++c)
                  want[c] += w * bf(v[((sq.k_first + j) * kv_heads + h / group) * dim_v + c]);
            }
            if (p.sinks) sum += exp(sinks[h] - top);
          }
          const double want_lse = sum ? top + log(sum) : -INFINITY;
          const float got = lse[(r / S * heads + h) * S + r % S];
          if (!sum)
            CHECK(got == -INFINITY, "seed %d lse of nothing: %f row %ld", seed, got, (long)r);
          else {
            worst_lse = std::max(worst_lse, fabs(want_lse - got));
            CHECK(fabs(want_lse - got) < 2e-3 + 1e-4 * fabs(want_lse),
                  "seed %d lse row %ld head %d %f want %f", seed, (long)r, h, got, want_lse);
          }
          for (int c = 0; c < dim_v; ++c) {
            const double w = sum ? want[c] / sum : 0, g = bf(out[(r * heads + h) * dim_v + c]);
            worst = std::max(worst, fabs(w - g));
            CHECK(fabs(w - g) <= 0.015 + 0.015 * fabs(w),
                  "seed %d out row %ld head %d col %d: %f want %f", seed, (long)r, h, c, g, w);
          }
          ++rows;
        }
    }
    for (size_t at = 0; at < done.size(); ++at)
      if (!done[at]) {
        const int64_t r = at / heads, h = at % heads;
        CHECK(lse[(r / S * heads + h) * S + r % S] == -INFINITY, "row of nobody");
        for (int c = 0; c < dim_v; ++c) CHECK(out[at * dim_v + c] == 0, "row of nobody");
      }
  }
  printf("ok: %ld rows, worst %g, lse %g\n", rows, worst, worst_lse);
}
