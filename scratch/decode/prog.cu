// Times the decode kernels over the 22 cells of the peers' table, and checks them. See run.sh.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "decode/dispatch.cc"
#include "decode/inst/kernel.cuh"
#include "decode/ring.cuh"

namespace jax_baracuda {
using T = __nv_bfloat16;
#ifndef HEAD
#define HEAD 128
#endif
using RingTile = MmaTile<T, HEAD, 8, true, true>;
constexpr int kThreads = 32 * kMaxRingWarps;
const std::vector<DecodeKernel>& decode_kernels() {
  static const std::vector<DecodeKernel> kernels = {
      decode_kernel_entry<DType::kBF16, HEAD, 8, true, false, false>(),
      decode_kernel_entry<DType::kBF16, HEAD, 8, true, false, true>()};
  return kernels;
}
#define CHECK(x)                                                                    \
  do {                                                                              \
    if (cudaError_t e = (x); e != cudaSuccess) {                                    \
      std::printf("%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e)); \
      std::fflush(stdout);                                                          \
      std::exit(1);                                                                 \
    }                                                                               \
  } while (0)

#ifndef HEAD
#define HEAD 128
#endif
constexpr int D = HEAD, kPer = D / 32;
constexpr auto kRing = decode_ring_kernel<RingTile, 32 * kMaxRingWarps>;

__global__ void fill(uint32_t* x, int64_t n, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i ^ (i >> 32)) * 2654435761u ^ seed;
    float v[2];
    for (int e = 0; e < 2; ++e) {
      float sum = 0.0f;
      for (int k = 0; k < 4; ++k) {
        h ^= h << 13, h ^= h >> 17, h ^= h << 5;
        sum += (h >> 8) * (1.0f / (1 << 24)) - 0.5f;
      }
      v[e] = 1.732f * sum;
    }
    x[i] = pack_floats<T>(v[0], v[1]);
  }
}
__global__ void poison(T* cache, int hkv, int K, const int* lengths) {  // grid: B * hkv
  const int b = blockIdx.x / hkv;
  T* row = cache + int64_t{blockIdx.x} * K * D;
  for (int64_t i = int64_t{lengths[b]} * D + threadIdx.x; i < int64_t{K} * D; i += blockDim.x)
    reinterpret_cast<uint16_t*>(row)[i] = 0x7fff;
}
// A block of 8 warps a query head.
__global__ void reference(const T* q, const T* k, const T* v, const int* lengths, const int* which,
                          int hkv, int group, int K, int window, int sinks, float scale, float* out,
                          float* lse) {
  const int b = which[blockIdx.x / (hkv * group)], h = blockIdx.x % (hkv * group);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int n = lengths == nullptr ? K : lengths[b];
  const T* query = q + (int64_t{b} * hkv * group + h) * D + lane * kPer;
  const int64_t base = (int64_t{b} * hkv + h / group) * K * D + lane * kPer;
  float qs[kPer], o[kPer] = {}, m = -INFINITY, l = 0;
  for (int e = 0; e < kPer; ++e) qs[e] = float(query[e]) * scale;
  for (int j = warp; j < n; j += 8) {
    if (window >= 0 && j < n - 1 - window && j >= sinks) continue;
    float s = 0;
    for (int e = 0; e < kPer; ++e) s += qs[e] * float(k[base + int64_t{j} * D + e]);
    for (int u = 16; u; u /= 2) s += __shfl_xor_sync(~0u, s, u);
    const float top = fmaxf(m, s), c = expf(m - top), w = expf(s - top);
    l = l * c + w;
    for (int e = 0; e < kPer; ++e) o[e] = o[e] * c + w * float(v[base + int64_t{j} * D + e]);
    m = top;
  }
  __shared__ float ms[8], ls[8], os[8][D];
  ms[warp] = m, ls[warp] = l;
  for (int e = 0; e < kPer; ++e) os[warp][lane * kPer + e] = o[e];
  __syncthreads();
  if (threadIdx.x >= D) return;
  float top = -INFINITY, sum = 0, r = 0;
  for (int w = 0; w < 8; ++w) top = fmaxf(top, ms[w]);
  if (top > -INFINITY)
    for (int w = 0; w < 8; ++w) {
      const float c = expf(ms[w] - top);
      sum += c * ls[w], r += c * os[w][threadIdx.x];
    }
  const int64_t row = int64_t{b} * hkv * group + h;
  out[row * D + threadIdx.x] = sum > 0 ? r / sum : 0;
  if (threadIdx.x == 0) lse[row] = top == -INFINITY ? -INFINITY : top + logf(sum);
}
__global__ void read_all(const uint4* x, int64_t n, uint32_t* out) {
  uint32_t sum = 0;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  for (; i + 7 * step < n; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) v[u] = load_global_16(x + i + u * step);
#pragma unroll
    for (int u = 0; u < 8; ++u) sum ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  for (; i < n; i += step) {
    const uint4 v = load_global_16(x + i);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345) *out = sum;
}

struct Problem {
  DecodeShape s;
  const int* lengths = nullptr;
  int window = -1, sinks = 0;
  bool full() const { return lengths == nullptr; }
};
struct Buffers {
  T *q, *out;
  float *lse, *workspace;
};
constexpr int64_t kWorkspace = 64 << 20;

DecodeParams make_params(const Problem& pr, const DecodeConfig& c, const Buffers& b, const T* k, const T* v) {
  const DecodeShape& s = pr.s;
  DecodeParams p = {};
  p.query = b.q, p.key = k, p.value = v, p.out = b.out, p.lse = b.lse;
  p.kv_lengths = pr.lengths;
  p.slot_heads = partial_heads(s, c);
  p.partial_out = b.workspace;
  p.partial_stats = p.partial_out + c.partial_slots * p.slot_heads * s.head_dim;
  p.kv_batch_stride = int64_t{s.kv_heads} * s.kv_capacity * D;
  p.kv_head_stride = int64_t{s.kv_capacity} * D;
  p.kv_token_stride = D;
  p.batch = s.batch, p.kv_heads = s.kv_heads, p.group = s.group, p.head_dim = D, p.kv_capacity = s.kv_capacity;
  p.window_left = pr.window, p.sink_tokens = pr.sinks;
  p.outer_scale = 1.4426950408889634f / std::sqrt(float(D));
  p.slices = c.slices, p.token_warps = c.token_warps;
  p.chunk_tokens = Divisor(static_cast<uint32_t>(c.chunk_tokens));
  p.block_heads = c.block_heads, p.head_blocks = c.head_blocks;
  p.splits = c.splits, p.cluster = c.cluster;
  if (c.cluster) {
    p.cluster_quads = cluster_quads(c.block_heads, c.dim_tile, c.splits);
    while (1 << p.cluster_bits < c.splits) ++p.cluster_bits;
  }
  p.ctas = static_cast<int>(c.ctas);
  p.merge_buffers = c.merge_buffers;
  p.merge_stride = c.merge_buffers == 1 ? 0 : merge_floats(c.block_heads, c.token_warps, c.dim_tile);
  p.ring_stages = c.ring_stages, p.ring_offset = c.ring_offset;
  if (c.splits == 0) {
    const int row_chunks = full_row_chunks(s, c);
    const int64_t total = int64_t{s.batch} * s.kv_heads * c.head_blocks * row_chunks;
    p.full_row_chunks = Divisor(static_cast<uint32_t>(row_chunks));
    p.full_request_rows = Divisor(static_cast<uint32_t>(s.kv_heads * c.head_blocks));
    p.full_piece = static_cast<int>(total / c.ctas);
    p.full_longer_pieces = static_cast<int>(total % c.ctas);
  }
  return p;
}

struct Variant {
  std::string name;
  DecodeConfig c;
  bool ring = false;
  bool by_row = false;
  bool combine = true;  // false: only the first kernel, to see what the second one costs
};

void launch(const Problem& pr, const Variant& v, const Buffers& b, const T* k, const T* val, cudaStream_t stream) {
  DecodeParams p = make_params(pr, v.c, b, k, val);
  if (!v.ring) {
    DecodeShape s = pr.s;
    CHECK(launch_decode(s, v.c, p, stream));
    return;
  }
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = launch_config(v.c, v.c.ctas, v.c.cluster ? v.c.splits : 1, &attribute, stream);
  CHECK(cudaLaunchKernelEx(&config, kRing, p));
  if (v.c.partial_slots && v.combine) CHECK(launch_combine(pr.s.dtype, v.c.dim_tile, p, true, stream));
}

int clusters_of(const Variant& v, int size) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = launch_config(v.c, size, size, &attribute, nullptr);
  int n = 0;
  const cudaError_t e = v.ring ? cudaOccupancyMaxActiveClusters(&n, kRing, &config)
                               : decode_kernels()[0].active_clusters(config, &n);
  if (e != cudaSuccess) cudaGetLastError(), n = 0;
  return n;
}

int g_sms;

// The stream by a ring kernel of `warps` warps with `stages` tiles each, `per_sm` CTAs an SM.
bool ring_stream(const Problem& pr, int warps, int stages, int per_sm, Variant* v, int splits = 0) {
  DecodeShape s = pr.s;
  if (splits) s.num_splits = splits;
  DecodeConfig c = choose_layout(s);
  if (warps * 32 > kThreads) return false;
  DecodeDevice device;
  device.ring_shared = 228 * 1024;
  if (!use_rings(s, device, {warps, stages, per_sm}, 1, c)) return false;
  const int64_t rows = int64_t{s.batch} * s.kv_heads * c.head_blocks, chunks = full_row_chunks(s, c);
  c.splits = s.num_splits;
  if (c.splits == 0) {
    c.ctas = std::min(int64_t{g_sms} * per_sm, rows * chunks);
    if (chunks == 1) c.splits = 1;
  }
  if (c.splits) c.ctas = rows * c.splits;
  c.partial_slots = c.splits == 0 ? 2 * c.ctas : c.splits == 1 ? 0 : int64_t{s.batch} * s.kv_heads * c.splits;
  *v = {"ring " + std::to_string(warps) + "x" + std::to_string(stages) + "x" + std::to_string(per_sm) +
            (splits ? " rows" : ""), c, true};
  return true;
}
Variant base(const Problem& pr) {
  Variant v{"base", {}, false};
  CHECK(plan_decode(pr.s, kWorkspace, &v.c));
  return v;
}
std::vector<Variant> variants(const Problem& pr, bool all) {
  Problem plain = pr;
  plain.s.adjacent_rows = false;
  std::vector<Variant> list{base(plain)};
  list[0].name = "registers";
  Problem adjacent = pr;
  adjacent.s.adjacent_rows = true;
  Variant v = base(adjacent);
  v.name = "plan: " + std::to_string(v.c.token_warps) + "x" + std::to_string(v.c.ring_stages) + (v.c.cluster ? " cl" + std::to_string(v.c.splits) : "");
  list.push_back(v);
  const int64_t rows = int64_t{pr.s.batch} * pr.s.kv_heads;
  if (pr.s.num_splits) return list;
  const int small[][3] = {{4, 2, 2}, {8, 3, 1}, {2, 4, 2}, {2, 2, 3}};
  const int rowwise[][3] = {{2, 2, 4}, {2, 2, 5}, {2, 3, 3}, {2, 3, 4}, {4, 1, 4}, {1, 4, 4}};
  const int64_t bytes = rows * full_row_bytes(pr.s);
  if (bytes < (int64_t{200} << 20) || all)
    for (const auto& r : small)
      if (ring_stream(pr, r[0], r[1], r[2], &v)) list.push_back(v);
  if (rows >= g_sms * 2 || all)
    for (const auto& r : rowwise)
      if (ring_stream(pr, r[0], r[1], r[2], &v, 1)) list.push_back(v);
  return list;
}

struct Reference {
  std::vector<int> which;
  std::vector<float> out, lse;
};
Reference run_reference(const Problem& pr, const Buffers& b, const T* k, const T* v) {
  const int heads = pr.s.kv_heads * pr.s.group;
  Reference r;
  for (int i = 0; i < pr.s.batch; ++i)
    if (pr.s.batch <= 40 || i < 2 || i >= pr.s.batch - 2 || i == pr.s.batch / 2) r.which.push_back(i);
  int* which;
  float *out, *lse;
  const int64_t rows = int64_t{pr.s.batch} * heads;
  CHECK(cudaMalloc(&which, r.which.size() * 4));
  CHECK(cudaMalloc(&out, rows * D * 4));
  CHECK(cudaMalloc(&lse, rows * 4));
  CHECK(cudaMemcpy(which, r.which.data(), r.which.size() * 4, cudaMemcpyHostToDevice));
  reference<<<r.which.size() * heads, 256>>>(b.q, k, v, pr.lengths, which, pr.s.kv_heads, pr.s.group,
                                             pr.s.kv_capacity, pr.window, pr.sinks, 1 / std::sqrt(float(D)), out, lse);
  r.out.resize(rows * D), r.lse.resize(rows);
  CHECK(cudaMemcpy(r.out.data(), out, rows * D * 4, cudaMemcpyDeviceToHost));
  CHECK(cudaMemcpy(r.lse.data(), lse, rows * 4, cudaMemcpyDeviceToHost));
  CHECK(cudaFree(which));
  CHECK(cudaFree(out));
  CHECK(cudaFree(lse));
  return r;
}
// Largest error relative to the largest result of the request; NaN counts as 9.
float compare(const Problem& pr, const Buffers& b, const Reference& r, std::vector<uint16_t>* bits) {
  const int heads = pr.s.kv_heads * pr.s.group;
  const int64_t rows = int64_t{pr.s.batch} * heads;
  std::vector<uint16_t> out(rows * D);
  std::vector<float> lse(rows);
  CHECK(cudaDeviceSynchronize());
  CHECK(cudaMemcpy(out.data(), b.out, rows * D * 2, cudaMemcpyDeviceToHost));
  CHECK(cudaMemcpy(lse.data(), b.lse, rows * 4, cudaMemcpyDeviceToHost));
  float worst = 0;
  const auto take = [&](float e) { worst = std::max(worst, e == e ? e : 9.0f); };
  for (const int i : r.which) {
    float top = 1e-6f;
    for (int64_t j = int64_t{i} * heads * D; j < int64_t{i + 1} * heads * D; ++j) top = std::max(top, std::fabs(r.out[j]));
    for (int64_t j = int64_t{i} * heads * D; j < int64_t{i + 1} * heads * D; ++j) {
      const uint32_t w = uint32_t{out[j]} << 16;
      float x;
      std::memcpy(&x, &w, 4);
      take(std::fabs(x - r.out[j]) / top);
    }
    for (int64_t j = int64_t{i} * heads; j < int64_t{i + 1} * heads; ++j)
      if (lse[j] != r.lse[j]) take(std::fabs(lse[j] - r.lse[j]));
  }
  if (bits) *bits = out;
  return worst;
}
void clear(const Problem& pr, const Buffers& b) {
  const int64_t rows = int64_t{pr.s.batch} * pr.s.kv_heads * pr.s.group;
  CHECK(cudaMemset(b.out, 0xff, rows * D * 2));
  CHECK(cudaMemset(b.lse, 0xff, rows * 4));
  CHECK(cudaMemset(b.workspace, 0xff, kWorkspace));
}

DecodeShape shape(int hkv, int group, int b, int K, bool uneven = false, int splits = 0) {
  DecodeShape s;
  s.dtype = DType::kBF16;
  s.batch = b, s.kv_heads = hkv, s.group = group, s.head_dim = D, s.kv_capacity = K;
  s.uneven_lengths = uneven, s.num_splits = splits;
  return s;
}

void check(const Buffers& b, T* cache) {
  struct Case { int hkv, group, batch, K; bool lengths; int window, sinks, splits; };
  const Case cases[] = {
      {8, 4, 1, 1024, false, -1, 0, 0}, {8, 4, 1, 1000, false, -1, 0, 0}, {8, 4, 8, 1024, false, -1, 0, 0},
      {8, 1, 3, 777, false, -1, 0, 0}, {8, 8, 2, 3001, false, -1, 0, 0}, {2, 3, 5, 100, false, -1, 0, 0},
      {8, 4, 1, 8192, false, -1, 0, 0}, {8, 4, 64, 1024, false, -1, 0, 0}, {4, 4, 1, 65, true, -1, 0, 0},
      {8, 4, 31, 2000, true, -1, 0, 0}, {2, 4, 70, 1500, true, -1, 0, 0}, {2, 8, 6, 4000, true, 90, 3, 0},
      {8, 4, 4, 5000, false, 700, 20, 0}, {2, 4, 6, 700, true, -1, 0, 5}, {8, 4, 1, 16, false, -1, 0, 0},
      {8, 4, 1, 3000, true, -1, 0, 0}};
  int* lengths;
  CHECK(cudaMalloc(&lengths, 4096));
  int bad = 0;
  for (const Case& c : cases) {
    Problem pr{shape(c.hkv, c.group, c.batch, c.K, c.lengths && c.batch > 1, c.splits)};
    const int64_t elements = int64_t{c.batch} * c.hkv * c.K * D;
    T *k = cache, *v = cache + elements;
    fill<<<1024, 256>>>(reinterpret_cast<uint32_t*>(k), elements, 7);
    fill<<<64, 256>>>(reinterpret_cast<uint32_t*>(b.q), int64_t{c.batch} * c.hkv * c.group * D / 2, 3);
    if (c.lengths) {
      std::vector<int> host(c.batch);
      for (int i = 0; i < c.batch; ++i) host[i] = i % 5 == 1 ? 0 : i % 7 == 3 ? c.K : (i * 7919 + 333) % c.K;
      CHECK(cudaMemcpy(lengths, host.data(), c.batch * 4, cudaMemcpyHostToDevice));
      poison<<<c.batch * c.hkv, 256>>>(k, c.hkv, c.K, lengths);
      poison<<<c.batch * c.hkv, 256>>>(v, c.hkv, c.K, lengths);
      pr.lengths = lengths;
    }
    pr.window = c.window, pr.sinks = c.sinks;
    const Reference r = run_reference(pr, b, k, v);
    for (const Variant& variant : variants(pr, !c.lengths || c.batch == 1)) {
      std::vector<uint16_t> first, second;
      float e = 0;
      for (int turn = 0; turn < 2; ++turn) {
        clear(pr, b);
        launch(pr, variant, b, k, v, nullptr);
        e = std::max(e, compare(pr, b, r, turn ? &second : &first));
      }
      const bool wrong = !(e < 0.012f) || first != second;
      bad += wrong;
      if (wrong)
        std::printf("WRONG B %d Hkv %d group %d K %d lengths %d window %d splits %d: %s error %.4f%s\n", c.batch, c.hkv,
                    c.group, c.K, c.lengths, c.window, c.splits, variant.name.c_str(), e, first != second ? ", bits differ" : "");
    }
  }
  std::printf("check: %d wrong\n", bad);
  std::fflush(stdout);
}

struct Graph {
  cudaGraphExec_t exec;
  int launches;
};
Graph capture(int launches, cudaStream_t stream, const std::function<void(int)>& body) {
  cudaGraph_t graph;
  Graph g{nullptr, launches};
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches; ++i) body(i);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&g.exec, graph, 0));
  CHECK(cudaGraphDestroy(graph));
  return g;
}

void bench(const Buffers& b, T* cache, int64_t cache_bytes) {
  const int cells[][3] = {{8, 1, 1024}, {8, 1, 2048}, {8, 1, 4096}, {8, 1, 8192}, {8, 1, 16384}, {8, 1, 32768}, {8, 8, 1024},
                          {8, 8, 2048}, {8, 8, 8192}, {8, 64, 1024}, {8, 64, 2048},
                          {8, 64, 8192}, {8, 256, 1024}, {8, 256, 2048}, {32, 1, 8192}};
  const double torch[] = {6.84, 8.01, 0, 14.4, 0, 37.05, 14.03, 21.68, 66.79, 65.54, 124.45, 480.75,
                          245.47, 480.16, 35.92};
  cudaStream_t stream;
  cudaEvent_t begin, end;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  for (size_t n = 0; n < std::size(cells); ++n) {
    const auto [hkv, batch, K] = cells[n];
    if (D != 128 && ((K != 8192 && K != 2048) || batch == 256)) continue;
    Problem pr{shape(hkv, 32 / hkv, batch, K)};
    const int64_t elements = int64_t{batch} * hkv * K * D, bytes = elements * 4;
    const int copies = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({96, cache_bytes / bytes, (int64_t{400} << 20) / bytes + 1})));
    const int launches = std::max(10, copies);
    const auto key = [&](int i) { return cache + int64_t{i % copies} * 2 * elements; };
    const Reference r = run_reference(pr, b, cache, cache + elements);
    std::vector<Variant> list = variants(pr, false);
    std::vector<Graph> graphs;
    std::vector<float> errors;
    for (const Variant& v : list) {
      clear(pr, b);
      launch(pr, v, b, cache, cache + elements, nullptr);
      errors.push_back(compare(pr, b, r, nullptr));
      graphs.push_back(capture(launches, stream, [&](int i) { launch(pr, v, b, key(i), key(i) + elements, stream); }));
    }
    graphs.push_back(capture(launches, stream, [&](int i) {
      read_all<<<g_sms * 2, 1024, 0, stream>>>(reinterpret_cast<const uint4*>(key(i)), bytes / 16, reinterpret_cast<uint32_t*>(b.workspace));
    }));
    std::vector<std::vector<float>> times(graphs.size());
    const int rounds = bytes > (int64_t{4} << 30) ? 3 : bytes > (int64_t{1} << 30) ? 5 : 13;
    for (int round = -1; round < rounds; ++round)
      for (size_t i = 0; i < graphs.size(); ++i) {
        if (round < 0 && bytes > (int64_t{4} << 30)) continue;
        CHECK(cudaEventRecord(begin, stream));
        CHECK(cudaGraphLaunch(graphs[i].exec, stream));
        CHECK(cudaEventRecord(end, stream));
        CHECK(cudaEventSynchronize(end));
        float ms;
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        if (round >= 0) times[i].push_back(ms * 1000 / launches);
      }
    const auto median = [&](size_t i) {
      std::sort(times[i].begin(), times[i].end());
      return times[i][times[i].size() / 2];
    };
    const float reading = median(list.size());
    std::printf("%d x %d x %d: read %.2f us %.0f GB/s, torch was %.2f\n", hkv, batch, K, reading, bytes / reading / 1000, torch[n]);
    for (size_t i = 0; i < list.size(); ++i) {
      const float us = median(i);
      std::printf("  %-18s %8.2f us %5.0f GB/s  %.3f of base %.3f of torch %5.1f%% of read%s\n", list[i].name.c_str(), us,
                  bytes / us / 1000, median(0) / us, torch[n] / us, 100 * reading / us, errors[i] < 0.012f ? "" : list[i].combine ? "  WRONG" : "  (no second kernel)");
    }
    std::fflush(stdout);
    for (const Graph& g : graphs) CHECK(cudaGraphExecDestroy(g.exec));
  }
}

int run(int argc, char** argv) {
  const bool checks = argc > 1 && std::string(argv[1]) == "check";
  CHECK(cudaDeviceGetAttribute(&g_sms, cudaDevAttrMultiProcessorCount, 0));
  const int64_t cache_bytes = checks ? int64_t{1} << 30 : int64_t{64} * 8 * 8192 * D * 4;
  Buffers b;
  T* cache;
  CHECK(cudaMalloc(&cache, cache_bytes));
  CHECK(cudaMalloc(&b.q, 256 * 32 * D * 2));
  CHECK(cudaMalloc(&b.out, 256 * 32 * D * 2));
  CHECK(cudaMalloc(&b.lse, 256 * 32 * 4));
  CHECK(cudaMalloc(&b.workspace, kWorkspace));
  CHECK(prepare_combine(DType::kBF16, D));
  CHECK(decode_kernels()[0].prepare(kMostClusterShared));
  CHECK(cudaFuncSetAttribute(kRing, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostClusterShared));
  fill<<<4096, 256>>>(reinterpret_cast<uint32_t*>(cache), cache_bytes / 4, 11);
  fill<<<64, 256>>>(reinterpret_cast<uint32_t*>(b.q), 256 * 32 * D / 2, 5);
  CHECK(cudaDeviceSynchronize());
  if (checks)
    check(b, cache);
  else
    bench(b, cache, cache_bytes);
  return 0;
}
}  // namespace jax_baracuda
int main(int argc, char** argv) { return jax_baracuda::run(argc, argv); }
