#include <map>
// Times the decode kernels over the 22 cells of the peers' table, and checks them. See run.sh.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "decode/dispatch.cc"
#include "device/memory.cuh"
#include "device/math.cuh"
#include "device/mma.cuh"
#include "device/mbarrier.cuh"
#include "device/cluster.cuh"


extern "C" const void* evict_kernel(int which);
namespace jax_baracuda {
using T = __nv_bfloat16;
#ifndef HEAD
#define HEAD 128
#endif
const std::vector<DecodeKernel>& decode_kernels() {
  static const std::vector<DecodeKernel> kernels = {
      decode_kernel_entry<DType::kBF16, HEAD, 8, true, false, false>(),
      decode_kernel_entry<DType::kBF16, HEAD, 8, true, false, true>(),
      decode_kernel_entry<DType::kBF16, HEAD, 8, true, true, false>(),
      decode_kernel_entry<DType::kBF16, HEAD, 8, true, true, true>()};
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
  PageTable pages = {};
  bool full() const { return lengths == nullptr; }
};
struct Buffers {
  T *q, *out;
  float *lse, *workspace;
};
constexpr int64_t kWorkspace = 64 << 20;
unsigned long long* g_stamps = nullptr;

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
#ifndef OLD
  p.lanes = Divisor(c.lanes);
#endif
#if !defined(OLD) && !defined(NO_HALVES)
  p.half_shared = c.half_shared;
#endif
  p.even_ctas = static_cast<int>(c.even_ctas > 0 ? c.even_ctas : c.ctas);
  p.merge_buffers = c.merge_buffers;
  p.merge_stride = c.merge_buffers == 1 ? 0 : merge_floats(c.block_heads, c.token_warps, c.dim_tile);
  p.ring_stages = c.ring_stages, p.ring_offset = c.ring_offset, p.table_offset = c.table_offset;
  if (c.splits == 0 && !s.paged) {
    const int row_chunks = full_row_chunks(s, c);
#ifdef OLD
    const int lanes = 1;
#else
    const int lanes = c.lanes;
#endif
    const int rows = s.kv_heads * c.head_blocks / lanes;
    const int64_t total = int64_t{s.batch} * rows * row_chunks, pieces = c.ctas / lanes;
    p.full_row_chunks = Divisor(static_cast<uint32_t>(row_chunks));
    p.full_request_rows = Divisor(static_cast<uint32_t>(rows));
    p.full_piece = static_cast<int>(total / pieces);
    p.full_longer_pieces = static_cast<int>(total % pieces);
  }
  if (s.paged) p.pages = pr.pages;
#ifdef STAMPS
  p.stamps = reinterpret_cast<long long*>(g_stamps);
#endif
  return p;
}

struct Graph {
  cudaGraphExec_t exec;
  int launches;
};
#ifdef BESIDE
extern int g_beside;
#endif

int g_sms;
__global__ void empty_all() { wait_for_dependency(); }
__global__ void empty_one() { if (blockIdx.x == 0) wait_for_dependency(); }

struct Variant {
  std::string name;
  DecodeConfig c;
  DecodeShape s;
  int fours = 0;
  int combine = 0;
  bool early = false;  // the first kernel, too, may start while the one before ends
  int child = 0;       // 1: every call a child graph; 2: with empty nodes between
  bool lengths = false;  // contiguous, lengths on the device
  enum { kNone, kCombine, kEmptyAll, kEmptyOne } second = kCombine;
};

void launch(const Problem& pr, const Variant& v, const Buffers& b, const T* k, const T* val, cudaStream_t stream) {
  Problem own = pr;
  own.s = v.s;
  if (!v.s.paged && !v.lengths) own.lengths = nullptr;
  const DecodeParams p = make_params(own, v.c, b, k, val);
  cudaLaunchAttribute attribute[2];
  cudaLaunchConfig_t config = launch_config(v.c, v.c.ctas, v.c.cluster ? v.c.splits : 1, attribute, stream);
  if (v.early) {
    cudaLaunchAttribute& a = attribute[config.numAttrs++];
    a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    a.val.programmaticStreamSerializationAllowed = 1;
  }
  CHECK(decode_kernels()[find_kernel(v.s.dtype, v.c)].launch(config, p));
  if (v.second == Variant::kCombine && v.c.partial_slots) {
#ifdef BESIDE
    g_beside = v.combine;
#endif
    CHECK(launch_combine(v.s.dtype, v.c.dim_tile, p, true, stream));
  }
  if (v.second == Variant::kEmptyAll || v.second == Variant::kEmptyOne) {
    cudaLaunchConfig_t launch = {};
    launch.gridDim = dim3(256), launch.blockDim = dim3(256), launch.stream = stream;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    launch.attrs = &early, launch.numAttrs = 1;
    CHECK(cudaLaunchKernelEx(&launch, v.second == Variant::kEmptyAll ? empty_all : empty_one));
  }
}
std::string form(const DecodeConfig& c) {
  return (c.ring_stages ? "ring " + std::to_string(c.token_warps) + "x" + std::to_string(c.ring_stages) : "regs " + std::to_string(c.token_warps)) +
         (c.cluster ? " cl" + std::to_string(c.splits) : " ctas " + std::to_string(c.ctas)) + (c.table_offset ? " table" : "");
}
Variant planned(const char* name, const DecodeShape& s, bool lengths = false) {
  Variant v{name, {}, s};
  v.lengths = lengths;
  CHECK(plan_decode(s, kWorkspace, &v.c));
  v.name += " " + form(v.c);
  return v;
}
void add_stream(std::vector<Variant>& list, DecodeShape s, int warps, int stages, int per_sm, bool table) {
  if (!table) s.table_entries = 0;
  Variant v{"paged", choose_layout(s), s};
  DecodeConfig& c = v.c;
  DecodeDevice device;
  device.ring_shared = 228 * 1024;
  if (!use_rings(s, device, {warps, stages, per_sm}, 1, c)) return;
  if (table && !c.table_offset) return;
  c.splits = 0;
  c.ctas = std::min(int64_t{g_sms} * per_sm, int64_t{s.batch} * s.kv_heads * full_row_chunks(s, c));
  c.partial_slots = 2 * c.ctas;
  v.name += " " + form(c);
  list.push_back(v);
}
void add_cluster(std::vector<Variant>& list, const char* name, DecodeShape s, int warps, int stages, int pieces, bool table, decltype(Variant::second) second) {
  if (!table) s.table_entries = 0;
  Variant v{name, choose_layout(s), s};
  DecodeConfig& c = v.c;
  DecodeDevice device;
  device.ring_shared = 228 * 1024;
  if (stages) {
    if (!use_rings(s, device, {warps, stages, 1}, pieces, c)) return;
    if (table && !c.table_offset) return;
  } else {
    set_token_warps(s, warps, pieces, c);
  }
  c.splits = pieces, c.cluster = true, c.partial_slots = 0;
  c.ctas = int64_t{s.batch} * s.kv_heads * pieces;
  v.second = second;
  v.name += " " + form(c) + (second == Variant::kEmptyAll ? " +empty, all wait" : second == Variant::kEmptyOne ? " +empty, one waits" : "");
  list.push_back(v);
}

Graph capture(int launches, cudaStream_t stream, const std::function<void(int)>& body);
Graph capture_children(int launches, cudaStream_t stream, bool empties, const std::function<void(int)>& body) {
  cudaGraph_t all;
  CHECK(cudaGraphCreate(&all, 0));
  cudaGraphNode_t before = nullptr;
  for (int i = 0; i < launches; ++i) {
    cudaGraph_t graph;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    body(i);
    CHECK(cudaStreamEndCapture(stream, &graph));
    cudaGraphNode_t node;
    CHECK(cudaGraphAddChildGraphNode(&node, all, &before, before ? 1 : 0, graph));
    before = node;
    if (empties) {
      CHECK(cudaGraphAddEmptyNode(&node, all, &before, 1));
      before = node;
    }
    CHECK(cudaGraphDestroy(graph));
  }
  Graph g{nullptr, launches};
  CHECK(cudaGraphInstantiate(&g.exec, all, 0));
  CHECK(cudaGraphDestroy(all));
  return g;
}

// The stream as it would be without pairs.
Variant as_stream(const char* name, DecodeShape s, bool lengths) {
  Variant v{name, choose_layout(s), s};
  v.lengths = lengths;
  DecodeDevice device;
  device.sms = g_sms, device.ctas_per_sm = D == 256 ? 2 : 3, device.ring_shared = 228 * 1024;
  choose_schedule(s, device, kWorkspace / partial_bytes(s, v.c), v.c);
  v.name += " " + form(v.c);
  return v;
}

// The stream on so many CTAs: where these are a divisor of the rows no row is split, and no second kernel needed.
void add_rows(std::vector<Variant>& list, const char* name, DecodeShape s, int warps, int stages, int per_sm, int ctas, bool lengths, bool second, bool table = false) {
  if (!table) s.table_entries = 0;
  Variant v{name, choose_layout(s), s};
  v.lengths = lengths;
  DecodeConfig& c = v.c;
  DecodeDevice device;
  device.ring_shared = 228 * 1024;
  if (stages) {
    if (!use_rings(s, device, {warps, stages, per_sm}, 1, c)) return;
    if (table && !c.table_offset) return;
  } else {
    set_token_warps(s, warps, 1, c);
  }
  c.splits = 0;
  c.ctas = std::min<int64_t>(ctas, int64_t{s.batch} * s.kv_heads * full_row_chunks(s, c));
  c.partial_slots = 2 * c.ctas;
  v.second = second ? Variant::kCombine : Variant::kNone;
  v.name += " " + form(c) + (second ? "" : " alone");
  list.push_back(v);
}
// Every row one CTA's, or several without a cluster.
void add_splits(std::vector<Variant>& list, const char* name, DecodeShape s, int warps, int stages, int per_sm, int splits) {
  Variant v{name, choose_layout(s), s};
  DecodeConfig& c = v.c;
  DecodeDevice device;
  device.ring_shared = 228 * 1024;
  if (stages) {
    if (!use_rings(s, device, {warps, stages, per_sm}, 1, c)) return;
  } else set_token_warps(s, warps, 1, c);
  c.splits = splits;
  c.ctas = int64_t{s.batch} * s.kv_heads * splits;
  c.partial_slots = splits == 1 ? 0 : c.ctas;
  v.name += " " + form(c) + " splits " + std::to_string(splits);
  list.push_back(v);
}
#ifndef OLD
void add_lanes(std::vector<Variant>& list, DecodeShape s, int warps, int stages, int per_sm, int ctas, int lanes, bool second, bool table, const char* name = "P", bool lengths = false) {
  const size_t before = list.size();
  add_rows(list, name, s, warps, stages, per_sm, ctas, lengths, second, table);
  if (list.size() == before) return;
  Variant& v = list.back();
  v.c.lanes = lanes;
  v.c.ctas = std::min<int64_t>(v.c.ctas, int64_t{ctas / lanes} * lanes);
  v.name = std::string(name) + " " + form(v.c);
  if (lanes > 1) v.name += " L";
}
#endif

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

int* upload(const std::vector<int>& v) {
  int* p;
  CHECK(cudaMalloc(&p, v.size() * 4 + 64));
  CHECK(cudaMemcpy(p, v.data(), v.size() * 4, cudaMemcpyHostToDevice));
  return p;
}
__global__ void scatter(const T* cache, T* store, PageTable t, const int* lengths, int hkv, int K) {
  const int b = blockIdx.x / hkv, h = blockIdx.x % hkv, page = t.page_size.divisor;
  for (int64_t i = threadIdx.x; i < int64_t{lengths[b]} * D; i += blockDim.x) {
    const int j = i / D;
    const int64_t row = int64_t{t.indices[t.indptr[b] + j / page]} * t.page_stride + h * t.head_stride + j % page * t.token_stride;
    store[row * D + i % D] = cache[(int64_t{blockIdx.x} * K + j) * D + i % D];
  }
}
struct HostPages { std::vector<int> indices, indptr, last; };
HostPages make_pages(const std::vector<int>& lengths, int page, int spare, bool shuffled = true, int before = 0) {
  HostPages h;
  h.indptr.push_back(0);
  for (const int n : lengths) {
    const int count = (n + page - 1) / page;
    for (int j = 0; j < count; ++j) h.indices.push_back(h.indices.size());
    h.indptr.push_back(h.indices.size());
    h.last.push_back(count ? n - (count - 1) * page : 0);
  }
  const int total = h.indices.size();
  uint64_t x = 88172645463325252ull;
  for (int i = total - 1; shuffled && i > 0; --i) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    std::swap(h.indices[i], h.indices[x % (i + 1)]);
  }
  h.indices.insert(h.indices.begin(), before, -7);
  for (int& x : h.indptr) x += before;
  for (int i = 0; i < spare; ++i) h.indices.push_back(0x7f000000 + i);
  return h;
}
PageTable device_pages(const HostPages& h, int store_pages, int page, int hkv, bool nhd = false) {
  PageTable t = {};
  t.indices = upload(h.indices), t.indptr = upload(h.indptr), t.last_page_len = upload(h.last);
  t.entries = h.indices.size(), t.pages = store_pages, t.max_length = t.entries * page;
  t.page_size = Divisor(page), t.page_stride = page * hkv, t.head_stride = nhd ? 1 : page, t.token_stride = nhd ? hkv : 1;
  return t;
}
DecodeShape paged_shape(DecodeShape s, const PageTable& t) {
  s.paged = true, s.uneven_lengths = s.batch > 1;
  s.kv_capacity = t.max_length, s.table_entries = t.entries;
  s.adjacent_rows = t.page_size.divisor % 4 == 0 && t.token_stride == 1;
  return s;
}



#ifdef OLD_FLASH
constexpr bool kOldFlash = true;
#else
constexpr bool kOldFlash = false;
#endif
struct Plain {
  int what;  // 0 flash, 1 lengths, 2 paged
  int hkv, group, batch, K;
  const int *lengths, *indices, *indptr, *last;
  int entries, pages, page;
  void *q, *out, *lse, *workspace;
  const void *k, *v;
};

struct Side { DecodeConfig c; DecodeShape s; Problem pr; };
Side side_of(const Plain& x) {
  Side side;
  side.pr.s = shape(x.hkv, x.group, x.batch, x.K);
  side.pr.lengths = x.lengths;
  PageTable& t = side.pr.pages;
  t.indices = x.indices, t.indptr = x.indptr, t.last_page_len = x.last;
  t.entries = x.entries, t.pages = x.pages, t.max_length = x.entries * x.page;
  t.page_size = Divisor(x.page), t.page_stride = x.page * x.hkv, t.head_stride = x.page, t.token_stride = 1;
  side.s = side.pr.s;
  side.s.adjacent_rows = true;
  if (x.what == 1) side.s.uneven_lengths = x.batch > 1;
  if (x.what == 2) side.s = paged_shape(side.s, t);
  CHECK(plan_decode(side.s, kWorkspace, &side.c));
  return side;
}
void launch_side(const Plain& x, cudaStream_t stream) {
  const Side side = side_of(x);
  Variant v{"", side.c, side.s};
  v.lengths = x.what == 1;
  const Buffers b{static_cast<T*>(x.q), static_cast<T*>(x.out), static_cast<float*>(x.lse), static_cast<float*>(x.workspace)};
  launch(side.pr, v, b, static_cast<const T*>(x.k), static_cast<const T*>(x.v), stream);
}
std::string form_of(const Plain& x) {
  const Side s = side_of(x);
  if (s.c.even_ctas != s.c.ctas) return form(s.c) + "/" + std::to_string(s.c.even_ctas) + "+";
  return form(s.c) + (s.c.partial_slots ? "+" : "");
}

}  // namespace
#ifdef OLD
extern "C" void old_launch(const void* x, cudaStream_t s) { jax_baracuda::launch_side(*static_cast<const jax_baracuda::Plain*>(x), s); }
extern "C" void old_form(const void* x, char* to) { std::strcpy(to, jax_baracuda::form_of(*static_cast<const jax_baracuda::Plain*>(x)).c_str()); }
extern "C" void old_prepare() { using namespace jax_baracuda; g_sms = 132; CHECK(prepare_combine(DType::kBF16, D)); }
#else

extern "C" void old_launch(const void* x, cudaStream_t s);
extern "C" void old_form(const void* x, char* to);
extern "C" void old_prepare();
namespace jax_baracuda {
std::vector<int> draw_lengths(int kind, int batch, int K) {
  std::vector<int> n(batch);
  uint64_t x = 0x9E3779B97F4A7C15ull + kind * 77 + batch;
  for (int i = 0; i < batch; ++i) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    const double u = (x >> 11) * (1.0 / 9007199254740992.0);
    n[i] = kind == 0   ? K                                             // even
           : kind == 1 ? K - static_cast<int>(u * 100) % (K / 8 + 1)  // nearly
           : kind == 2 ? static_cast<int>(u * K)                      // any
           : kind == 3 ? (i == batch / 2 ? K : 3)                     // one
           : kind == 4 ? (i % 3 == 1 ? 0 : K)                         // some are empty
           : kind == 5 ? 0
                       : static_cast<int>(std::exp(std::log(16.0) + u * std::log(K / 16.0)));  // log uniform
  }
  return n;
}

const char* kKinds[] = {"", "nearly", "any", "one", "some 0", "0", "log"};
struct Cell { int hkv, batch, K, kind; };
int run(int argc, char** argv) {
  CHECK(cudaDeviceGetAttribute(&g_sms, cudaDevAttrMultiProcessorCount, 0));
  const int64_t cache_bytes = int64_t{12} << 30;
  Buffers b;
  T* cache;
  CHECK(cudaMalloc(&cache, cache_bytes));
  CHECK(cudaMalloc(&b.q, 256 * 64 * D * 2));
  CHECK(cudaMalloc(&b.out, 256 * 64 * D * 2));
  CHECK(cudaMalloc(&b.lse, 256 * 64 * 4));
  CHECK(cudaMalloc(&b.workspace, kWorkspace));
  CHECK(prepare_combine(DType::kBF16, D));
  old_prepare();
  fill<<<4096, 256>>>(reinterpret_cast<uint32_t*>(cache), cache_bytes / 4, 11);
  fill<<<64, 256>>>(reinterpret_cast<uint32_t*>(b.q), 256 * 32 * D / 2, 5);
  CHECK(cudaDeviceSynchronize());
  const Cell cells[] = {
#include "cells.h"
};
  cudaStream_t stream;
  cudaEvent_t begin, end;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::printf("D %d: before -> now us (x), forms; read only\n", D);
  for (const Cell& cell : cells) {
    const auto [hkv, batch, K, kind] = cell;
    const std::vector<int> lengths = draw_lengths(kind, batch, K);
    int64_t tokens = 0;
    for (const int n : lengths) tokens += n;
    const int64_t elements = int64_t{batch} * hkv * K * D, bytes = tokens * hkv * D * 4;
    const int copies = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({240, cache_bytes / (elements * 4), (int64_t{4} << 30) / bytes + 1})));
    const HostPages host = make_pages(lengths, 16, 0);
    const PageTable t = device_pages(host, host.indices.size(), 16, hkv);
    Plain x = {0, hkv, 32 / hkv, batch, K, upload(lengths), t.indices, t.indptr, t.last_page_len, static_cast<int>(host.indices.size()), static_cast<int>(host.indices.size()), 16, b.q, b.out, b.lse, b.workspace, cache, cache + elements};
    const int launches = std::max(10, copies);
    struct One { int what; bool old; Graph g; std::vector<float> t; std::string form; };
    std::vector<One> list;
    for (int what = kind == 0 ? 0 : 1; what < 3; ++what)
      for (const bool old : {true, false}) {
        if (old && what == 0 && !kOldFlash) continue;
        x.what = what;
        const auto go = [&](cudaStream_t s) { if (old) old_launch(&x, s); else launch_side(x, s); };
        if (kind == 0 && what < 2) {
          Problem pr{shape(hkv, 32 / hkv, batch, K)};
          pr.lengths = x.lengths;
          x.k = cache, x.v = cache + elements;
          const Reference r = run_reference(pr, b, cache, cache + elements);
          clear(pr, b);
          go(nullptr);
          const float e = compare(pr, b, r, nullptr);
          if (!(e < 0.012f)) std::printf("WRONG %d x %d x %d what %d old %d: %.4f\n", hkv, batch, K, what, old, e);
        }
        char name[100];
        if (old) old_form(&x, name);
        list.push_back({what, old, capture(launches, stream, [&](int i) { const T* k = cache + int64_t{i % copies} * 2 * elements; x.k = k, x.v = k + elements; go(stream); }), {}, old ? name : form_of(x)});
      }
    const int64_t n = bytes / 16;
    list.push_back({9, false, capture(launches, stream, [&](int i) { read_all<<<g_sms * 8, 256, 0, stream>>>(reinterpret_cast<const uint4*>(cache + int64_t{i % copies} * 2 * elements), n, reinterpret_cast<uint32_t*>(b.workspace)); }), {}, ""});
    const int count = list.size();
    for (int round = -2; round < 14; ++round)
      for (int j = 0; j < count; ++j) {
        One& o = list[(j * (round % 2 ? 1 : count - 1) + round + 20) % count];  // every one has every neighbour and place
        CHECK(cudaEventRecord(begin, stream));
        CHECK(cudaGraphLaunch(o.g.exec, stream));
        CHECK(cudaEventRecord(end, stream));
        CHECK(cudaEventSynchronize(end));
        float ms;
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        if (round >= 0) o.t.push_back(ms * 1000 / launches);
      }
    for (One& o : list) std::sort(o.t.begin(), o.t.end());
    const auto us = [](const One& o) { return o.t[o.t.size() / 2]; };
    std::printf("%dx%dx%d %s %.0f MB read %.2f", hkv, batch, K, kKinds[kind], bytes / 1e6, us(list.back()));
    const float flash = list[0].what == 0 ? us(list[kOldFlash ? 1 : 0]) : 0;
    if (kOldFlash && flash > 0) std::printf(" | F before %.2f (%.3f)", us(list[0]), us(list[0]) / flash);
    if (flash > 0) std::printf(" | F %.2f %s", flash, list[kOldFlash].form.c_str());
    for (int i = flash > 0 ? kOldFlash + 1 : 0; i + 1 < count; i += 2)
      std::printf(" | %s %.2f -> %.2f (%.3f; of F %.3f -> %.3f)%s %s -> %s", list[i].what == 1 ? "L" : "P", us(list[i]), us(list[i + 1]), us(list[i]) / us(list[i + 1]), flash / us(list[i]), flash / us(list[i + 1]), list[i + 1].t.back() > 1.04f * list[i + 1].t[0] ? "~" : "", list[i].form.c_str(), list[i].form == list[i + 1].form ? "=" : list[i + 1].form.c_str());
    std::printf("\n");
    std::fflush(stdout);
    for (One& o : list) CHECK(cudaGraphExecDestroy(o.g.exec));
    for (const int* p : {x.lengths, x.indices, x.indptr, x.last}) CHECK(cudaFree(const_cast<int*>(p)));
  }
  return 0;
}
}  // namespace jax_baracuda
int main(int argc, char** argv) { return jax_baracuda::run(argc, argv); }

#endif



