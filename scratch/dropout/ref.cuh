// Gradients in float32, slowly, on the device.
#pragma once
#include "attention/backward/params.h"
#include "attention/score.cuh"

namespace jax_baracuda {

struct Place {
  int64_t q0, k0;
  int nq, nk, ql, kl, offset;
};
__device__ inline Place place_of(const AttentionProblem& p, int seq) {
  Place r;
  const int pack = seq / p.sequences, at = seq + pack;
  r.q0 = int64_t{pack} * p.q_rows;
  r.k0 = int64_t{pack} * p.k_rows;
  r.nq = p.q_rows;
  r.nk = p.k_rows;
  if (p.cu_seqlens_q) {
    r.q0 += p.cu_seqlens_q[at];
    r.k0 += p.cu_seqlens_k[at];
    r.nq = p.cu_seqlens_q[at + 1] - p.cu_seqlens_q[at];
    r.nk = p.cu_seqlens_k[at + 1] - p.cu_seqlens_k[at];
  }
  r.ql = p.query_lengths ? min(p.query_lengths[seq], r.nq) : r.nq;
  r.kl = p.kv_lengths ? min(p.kv_lengths[seq], r.nk) : r.nk;
  r.offset = p.top_left ? 0 : r.nk - r.nq;
  return r;
}
__device__ inline bool seen(const AttentionProblem& p, const Place& r, int i, int j) {
  const int d = j - i - r.offset;
  bool s =
      (p.window_left < 0 || d >= -p.window_left) && (p.window_right < 0 || d <= p.window_right);
  s = (s || j < p.sink_tokens) && !(p.causal && d > 0) && i < r.ql && j < r.kl;
  return s && !(p.query_segments && p.query_segments[r.q0 + i] != p.kv_segments[r.k0 + j]);
}

// Slowly: a bias, whether a weight is kept.
__device__ inline float ref_bias(const AttentionProblem& p, int seq, int head, int i, int j) {
  const int64_t at = seq * p.bias.sequence_stride + head * p.bias.head_stride + i * p.bias.row_stride + j;
  switch (p.bias.type) {
    case BiasType::kF16: return __half2float(((const __half*)p.bias.data)[at]);
    case BiasType::kBF16: return __bfloat162float(((const __nv_bfloat16*)p.bias.data)[at]);
    case BiasType::kF32: return ((const float*)p.bias.data)[at];
    case BiasType::kMask: return ((const uint8_t*)p.bias.data)[at] ? 0.0f : -INFINITY;
    default: return 0.0f;
  }
}
__device__ inline bool ref_kept(const AttentionProblem& p, int seq, int head, int i, int j, bool fine) {
  if (!p.dropout_seed) return true;
  const uint4 seed = p.dropout_seed[seq * p.heads + head];
  const uint2 key = make_uint2(seed.x, seed.y);
  if (!fine) {
    const uint4 x = philox(make_uint4((i >> 4) * 8 + (i & 7), (j >> 4) * 4 + (j >> 1 & 3), seed.z, seed.w), key);
    const uint32_t word[4] = {x.x, x.y, x.z, x.w};
    const uint32_t half = word[2 * (i >> 3 & 1) + (j >> 3 & 1)] >> 16 * (j & 1);
    return (half & 0x7fff) >= p.dropout_threshold;
  }
  const uint4 x = philox(make_uint4(i / 32 * 8 + i % 8, j / 64 * 4 + j % 8 / 2, seed.z, seed.w), make_uint2(seed.x, seed.y));
  const uint32_t word[4] = {x.x, x.y, x.z, x.w};
  const int k = 2 * (i / 8 % 2) + j / 8 % 2, part = 4 * (i / 16 % 2) + j / 16 % 4;
  uint32_t factor = 1;
  for (int n = 0; n < part; ++n) factor *= 747796405u;
  const uint32_t w32 = word[k] + (part ? factor * word[(k + 1) % 4] : 0);
  return (w32 >> 16 * (j % 2) & 0x7fff) >= p.dropout_threshold;
}

// Block (row, head, sequence) of 128 threads: the row's weights and their gradients, out and LSE.
template <class T>
__global__ void reference_rows(BackwardParams p, float* weights, float* gradients, T* out,
                               float* lse, bool fine) {
  const int i = blockIdx.x, head = blockIdx.y, seq = blockIdx.z, t = threadIdx.x;
  const Place r = place_of(p, seq);
  if (i >= r.nq) return;
  const int kv_head = head / p.group, pack = seq / p.sequences;
  float* w = weights + ((size_t{blockIdx.z} * p.heads + head) * p.max_q + i) * p.max_k;
  float* g = gradients + (w - weights);
  const T* q = static_cast<const T*>(p.query) + ((r.q0 + i) * p.heads + head) * p.dim;
  const T* o = static_cast<const T*>(p.dout) + ((r.q0 + i) * p.heads + head) * p.dim_v;
  __shared__ float sums[128], sq[256], so[256];
  for (int c = t; c < p.dim; c += 128) sq[c] = i < r.ql ? float(q[c]) : 0;
  for (int c = t; c < p.dim_v; c += 128) so[c] = i < r.ql ? float(o[c]) : 0;
  const auto reduce = [&](float x, bool greatest) {
    __syncthreads();
    sums[t] = x;
    __syncthreads();
    for (int n = 64; n; n /= 2) {
      if (t < n) sums[t] = greatest ? fmaxf(sums[t], sums[t + n]) : sums[t] + sums[t + n];
      __syncthreads();
    }
    return sums[0];
  };
  __syncthreads();
  float top = -INFINITY, sum = 0, delta = 0;
  for (int j = t; j < r.nk; j += 128) {
    float s = -INFINITY, dp = 0;
    if (seen(p, r, i, j)) {
      const T* k = static_cast<const T*>(p.key) + ((r.k0 + j) * p.kv_heads + kv_head) * p.dim;
      const T* v = static_cast<const T*>(p.value) + ((r.k0 + j) * p.kv_heads + kv_head) * p.dim_v;
      s = 0;
      for (int c = 0; c < p.dim; ++c) s += sq[c] * float(k[c]);
      for (int c = 0; c < p.dim_v; ++c) dp += so[c] * float(v[c]);
      s *= p.scale;
      if (p.soft_cap > 0) s = p.soft_cap * tanhf(s / p.soft_cap);
      if (p.alibi_slopes) s -= p.alibi_slopes[seq * p.alibi_stride + head] * fabsf(float(i + r.offset - j));
      s += ref_bias(p, seq, head, i, j);
    }
    w[j] = s;
    g[j] = dp;
    top = fmaxf(top, s);
  }
  top = reduce(top, true);
  const bool nothing = top == -INFINITY;
  // dP's factor on its way through the cap: 1 - (s / cap)^2; kept apart, a cap comes alone or before ALiBi in these tests
  for (int j = t; j < r.nk; j += 128) sum += w[j] = w[j] == -INFINITY || nothing ? 0 : expf(w[j] - top);
  sum = reduce(sum, false);
  const float total = sum + (p.sinks && sum > 0 ? expf(p.sinks[head] - top) : 0);
  for (int j = t; j < r.nk; j += 128) w[j] = sum > 0 ? w[j] / total : 0;
  __syncthreads();
  for (int c = t; c < p.dim_v; c += 128) {  // what the kernel is given is rounded
    float x = 0;
    for (int j = 0; j < r.kl; ++j)
      if (w[j] != 0 && ref_kept(p, seq, head, i, j, fine))
        x += w[j] * p.dropout_scale * float(static_cast<const T*>(
                        p.value)[((r.k0 + j) * p.kv_heads + kv_head) * p.dim_v + c]);
    const T rounded = sum > 0 ? T(x) : T(NAN);  // not looked at where nothing is seen
    out[((r.q0 + i) * p.heads + head) * p.dim_v + c] = rounded;
    delta += sum > 0 ? float(rounded) * so[c] : 0;
  }
  delta = reduce(delta, false);
  const int64_t stat =
      (int64_t{pack} * p.heads + head) * p.q_rows + (r.q0 - int64_t{pack} * p.q_rows) + i;
  __syncthreads();
  for (int j = t; j < r.nk; j += 128) {
    if (w[j] == 0) {
      g[j] = 0;
      continue;
    }
    const float up = ref_kept(p, seq, head, i, j, fine) ? p.dropout_scale : 0;
    float bent = 1;
    if (p.soft_cap > 0) {
      float s = 0;
      const T* k = static_cast<const T*>(p.key) + ((r.k0 + j) * p.kv_heads + kv_head) * p.dim;
      for (int c = 0; c < p.dim; ++c) s += sq[c] * float(k[c]);
      const float th = tanhf(s * p.scale / p.soft_cap);
      bent = 1 - th * th;
    }
    g[j] = w[j] * bent * (up * g[j] - delta + (p.dlse ? p.dlse[stat] : 0));
    w[j] *= up;
  }
  if (t == 0) lse[stat] = sum > 0 ? logf(total) + top : -INFINITY;
}
template <class T>
__global__ void reference_dq(BackwardParams p, const float* gradients, float* dq) {
  const int i = blockIdx.x, head = blockIdx.y;
  const Place r = place_of(p, blockIdx.z);
  if (i >= r.nq) return;
  const float* g = gradients + ((size_t{blockIdx.z} * p.heads + head) * p.max_q + i) * p.max_k;
  for (int c = threadIdx.x; c < p.dim; c += blockDim.x) {
    float x = 0;
    for (int j = 0; j < r.kl; ++j)
      if (g[j] != 0)
        x += g[j] * float(static_cast<const T*>(
                        p.key)[((r.k0 + j) * p.kv_heads + head / p.group) * p.dim + c]);
    dq[((r.q0 + i) * p.heads + head) * p.dim + c] = x * p.scale;
  }
}
template <class T>
__global__ void reference_dkv(BackwardParams p, const float* weights, const float* gradients,
                              float* dk, float* dv) {
  const int j = blockIdx.x, kv_head = blockIdx.y;
  const Place r = place_of(p, blockIdx.z);
  if (j >= r.nk) return;
  for (int c = threadIdx.x; c < max(p.dim, p.dim_v); c += blockDim.x) {
    float x = 0, y = 0;
    for (int head = kv_head * p.group; head < (kv_head + 1) * p.group; ++head)
      for (int i = 0; i < r.ql; ++i) {
        const size_t at = ((size_t{blockIdx.z} * p.heads + head) * p.max_q + i) * p.max_k + j;
        const int64_t row = (r.q0 + i) * p.heads + head;
        if (c < p.dim && gradients[at] != 0)
          x += gradients[at] * float(static_cast<const T*>(p.query)[row * p.dim + c]);
        if (c < p.dim_v && weights[at] != 0)
          y += weights[at] * float(static_cast<const T*>(p.dout)[row * p.dim_v + c]);
      }
    const int64_t to = (r.k0 + j) * p.kv_heads + kv_head;
    if (c < p.dim) dk[to * p.dim + c] = x * p.scale;
    if (c < p.dim_v) dv[to * p.dim_v + c] = y;
  }
}

}  // namespace jax_baracuda
