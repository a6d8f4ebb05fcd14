// Which tile of the row kernel is fastest, beside a copy of the same bytes by the driver, and beside rows that the copy
// engine moves through shared memory. No JAX:
//
//   nvcc -std=c++17 -O3 -arch=sm_90a --expt-relaxed-constexpr -Iffi scratch/append_sweep.cu -o append_sweep && ./append_sweep
//
// Again with -Iscratch/hints in front of -Iffi: rows are read evict-first. With -Xptxas -dscm=cs: stores likewise.
// One line a variant: microseconds, TB/s, percent of the copy, wrong elements (0).
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "cache/config.h"
#include "cache/kernel.cuh"
#include "device/bulk.cuh"
#include "device/mbarrier.cuh"

using namespace jax_baracuda;

#define CHECK(call)                                                             \
  do {                                                                          \
    const cudaError_t error = (call);                                           \
    if (error != cudaSuccess) {                                                 \
      std::printf("%s:%d %s\n", __FILE__, __LINE__, cudaGetErrorString(error)); \
      std::exit(1);                                                             \
    }                                                                           \
  } while (0)

constexpr int kHeads = 8, kQueryHeads = 32, kDim = 128, kPage = 16;

__global__ void fill(uint32_t* data, size_t words) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words; i += step)
    data[i] = (static_cast<uint32_t>(i) * 2654435761u & 0x3f7f3f7fu) | 0x3c003c00u;  // finite
}

__global__ void count_wrong(const uint16_t* rows, const uint16_t* store, const int* pages,
                            int tokens, bool nhd, unsigned* wrong) {
  const int64_t count = int64_t{tokens} * kHeads * kDim;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const int d = i % kDim, head = i / kDim % kHeads, token = i / kDim / kHeads;
    const int64_t page = pages[token / kPage], row = token % kPage;
    const int64_t at =
        nhd ? (page * kPage + row) * kHeads + head : (page * kHeads + head) * kPage + row;
    if (store[at * kDim + d] != rows[i]) atomicAdd(wrong, 1u);
  }
}

// The copy engine alone: one load of a tile's contiguous rows, then a store for each run that is contiguous in the store.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) bulk_kernel(const __grid_constant__ RowParams p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ float4 row_shared[];
  __shared__ uint64_t arrived;
  int cta = blockIdx.x, index = 0;
  while (cta >= p.sets[index].ctas) cta -= p.sets[index++].ctas;
  const RowSet& set = p.sets[index];
  const RowTile tile(p, set, cta);
  const int tokens = tile.tokens;
  const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(row_shared));
  const uint32_t barrier = static_cast<uint32_t>(__cvta_generic_to_shared(&arrived));
  const int token_bytes = set.heads * set.dim * 2;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(barrier, tokens * token_bytes);
    bulk_load(
        shared,
        static_cast<const uint16_t*>(set.source) + int64_t{tile.first_token} * set.source_token,
        tokens * token_bytes, barrier);
  }
  // Lane l of every warp looks up token l: a tile has at most 32.
  const int lane = threadIdx.x % 32;
  int64_t place_of_lane = -1;
  if (lane < tokens) place_of_lane = place(p, set, find_token(p, tile.first_token + lane));
  __syncthreads();  // the barrier is initialised
  mbarrier_wait(barrier, 0);
  const int runs = set.target_head == set.dim ? 1 : set.heads;  // of a token
  const int run_bytes = token_bytes / runs;
  for (int i = threadIdx.x; i / 32 * 32 < tokens * runs; i += kThreads) {
    const int token =
        i < tokens * runs ? i % tokens : 0;  // consecutive tokens: consecutive rows of a page
    const int run = i / tokens;
    const int64_t to = __shfl_sync(0xffffffffu, place_of_lane, token);
    if (i >= tokens * runs || to < 0) continue;
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n" ::"l"(
                     static_cast<uint16_t*>(set.target) + to + run * set.target_head),
                 "r"(shared + token * token_bytes + run * run_bytes), "r"(run_bytes)
                 : "memory");
  }
  bulk_commit();
  bulk_wait();
#endif
}

struct Problem {
  int tokens;
  bool nhd, rope;
  int sets;
  std::vector<RowParams> calls;
  std::vector<std::pair<uint16_t*, uint16_t*>> keys;  // rows, store
  int* pages;

  size_t call_bytes() const {  // read and written
    return size_t{2} * tokens * (2 * kHeads + (rope ? kQueryHeads : 0)) * kDim * 2;
  }
};

uint16_t* allocate(size_t elements) {
  uint16_t* data;
  CHECK(cudaMalloc(&data, elements * 2));
  fill<<<1024, 256>>>(reinterpret_cast<uint32_t*>(data), elements / 2);
  return data;
}

int* upload(const std::vector<int>& values) {
  int* data;
  CHECK(cudaMalloc(&data, values.size() * 4));
  CHECK(cudaMemcpy(data, values.data(), values.size() * 4, cudaMemcpyHostToDevice));
  return data;
}

void add(RowParams* p, const uint16_t* from, uint16_t* to, int heads, int rotary, bool placed,
         bool nhd) {
  RowSet& set = p->sets[p->set_count++];
  set.source = from;
  set.target = to;
  set.source_token = heads * kDim;
  set.source_head = kDim;
  set.target_slot = placed ? kPage * heads * kDim : int64_t{p->tokens} * heads * kDim;
  set.target_row = !placed || nhd ? heads * kDim : kDim;
  set.target_head = !placed || nhd ? kDim : kPage * kDim;
  set.heads = heads;
  set.dim = kDim;
  set.rotary_dim = rotary;
  set.placed = placed;
}

Problem make(int tokens, bool nhd, bool rope) {
  Problem problem = {tokens, nhd, rope, 0, {}, {}, nullptr};
  const int pages = tokens / kPage;
  std::vector<int> order(pages), positions(tokens), batch(tokens, 0);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<float> frequencies(kDim / 2);
  for (int i = 0; i < kDim / 2; ++i) frequencies[i] = powf(10000.0f, -2.0f * i / kDim);
  float* inv_freq;
  CHECK(cudaMalloc(&inv_freq, kDim * 2));
  CHECK(cudaMemcpy(inv_freq, frequencies.data(), kDim * 2, cudaMemcpyHostToDevice));
  problem.pages = upload(order);
  int *device_positions = upload(positions), *device_batch = upload(batch),
      *indptr = upload({0, pages});
  problem.sets =
      static_cast<int>(std::min<size_t>(64, 1 + (size_t{1} << 30) / problem.call_bytes()));
  for (int i = 0; i < problem.sets; ++i) {
    RowParams p = {};
    p.tokens = tokens;
    p.request_tokens = Divisor(tokens);
    p.positions = device_positions;
    p.inv_freq = inv_freq;
    p.attention_factor = 1.0f;
    p.placement = Placement::kPages;
    p.slot_rows = kPage;
    p.layer_slots = pages;
    p.layer_count = 1;
    p.batch_indices = device_batch;
    p.page_indices = problem.pages;
    p.page_indptr = indptr;
    p.table_requests = 1;
    p.entries = pages;
    p.page_size = Divisor(kPage);
    const size_t elements = size_t(tokens) * kHeads * kDim;
    uint16_t *key = allocate(elements), *value = allocate(elements);
    uint16_t *k_store = allocate(elements), *v_store = allocate(elements);
    add(&p, key, k_store, kHeads, rope ? kDim : 0, true, nhd);
    if (rope)
      add(&p, allocate(elements * 4), allocate(elements * 4), kQueryHeads, kDim, false, nhd);
    add(&p, value, v_store, kHeads, 0, true, nhd);
    problem.calls.push_back(p);
    problem.keys.push_back({value, v_store});
  }
  CHECK(cudaDeviceSynchronize());
  return problem;
}

// Microseconds a call, of a graph that goes through all sets.
template <class Launch>
float time_calls(const Problem& problem, Launch launch) {
  cudaStream_t stream;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const int calls = std::max(problem.sets, problem.tokens < 1024 ? 64 : 8);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < calls; ++i) launch(i % problem.sets, stream);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  float best = 1e30f;
  for (int sample = 0; sample < 7; ++sample) {
    CHECK(cudaEventRecord(begin, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (sample > 0) best = std::min(best, ms * 1e3f / (2 * calls));
  }
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaStreamDestroy(stream));
  return best;
}

void report(const Problem& problem, const char* name, float us, float copy_us) {
  unsigned* wrong;
  unsigned found = 0;
  CHECK(cudaMalloc(&wrong, 4));
  CHECK(cudaMemset(wrong, 0, 4));
  for (const auto& [rows, store] : problem.keys)
    count_wrong<<<1024, 256>>>(rows, store, problem.pages, problem.tokens, problem.nhd, wrong);
  CHECK(cudaMemcpy(&found, wrong, 4, cudaMemcpyDeviceToHost));
  CHECK(cudaFree(wrong));
  for (const auto& [rows, store] : problem.keys)
    CHECK(cudaMemset(store, 0, size_t(problem.tokens) * kHeads * kDim * 2));
  std::printf("%6d tokens %s %s  %-22s %8.2f us %6.2f TB/s %5.1f%% of the copy, wrong: %u\n",
              problem.tokens, problem.nhd ? "NHD" : "HND", problem.rope ? "rope" : "    ", name, us,
              problem.call_bytes() / us * 1e-6, 100 * copy_us / us, found);
}

template <int kThreads, int kBatch>
void rows(const Problem& problem, float copy_us, int sms) {
  const auto kernel = problem.rope ? row_kernel<__nv_bfloat16, 8, Pairs::kHalves, kThreads, kBatch>
                                   : row_kernel<uint16_t, 8, Pairs::kNone, kThreads, kBatch>;
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 128 * 1024));
  const RowPlan plan = {DType::kBF16, false, problem.rope, true};
  const float us = time_calls(problem, [&](int i, cudaStream_t stream) {
    RowParams p = problem.calls[i];
    const int64_t ctas = choose_row_layout(plan, sms, &p, kThreads, kBatch);
    kernel<<<static_cast<unsigned>(ctas), kThreads, p.shared_bytes, stream>>>(p);
    CHECK(cudaGetLastError());
  });
  char name[64];
  std::snprintf(name, sizeof(name), "%d threads x %d", kThreads, kBatch);
  report(problem, name, us, copy_us);
}

template <int kThreads>
void bulk(const Problem& problem, float copy_us, int tile_tokens) {
  const int bytes = tile_tokens * kHeads * kDim * 2;
  CHECK(cudaFuncSetAttribute(bulk_kernel<kThreads>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             bytes));
  const float us = time_calls(problem, [&](int i, cudaStream_t stream) {
    RowParams p = problem.calls[i];
    int ctas = 0;
    for (int set = 0; set < p.set_count; ++set) {
      cut_tiles(p.tokens, 8, 32, tile_tokens * kHeads * kDim / 16 / 32, &p.sets[set]);
      ctas += p.sets[set].ctas;
    }
    bulk_kernel<kThreads><<<ctas, kThreads, bytes, stream>>>(p);
    CHECK(cudaGetLastError());
  });
  char name[64];
  std::snprintf(name, sizeof(name), "bulk %d threads, %d", kThreads, tile_tokens);
  report(problem, name, us, copy_us);
}

int main(int argc, char** argv) {
  const bool all = argc > 1;  // any argument: NHD and 4096 tokens too
  int sms = 0;
  CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
  for (const int tokens : {64, 4096, 65536}) {
    for (const bool nhd : {false, true}) {
      for (const bool rope : {false, true}) {
        if (!all && (nhd || tokens == 4096)) continue;
        const Problem problem = make(tokens, nhd, rope);
        // Half of the call's bytes from one place to another: sets are rows and stores by turns.
        uint16_t* memory = allocate(problem.sets * problem.call_bytes() / 2);
        const size_t half = problem.call_bytes() / 2;
        const float copy_us = time_calls(problem, [&](int i, cudaStream_t stream) {
          char* from = reinterpret_cast<char*>(memory) + i * problem.call_bytes();
          CHECK(cudaMemcpyAsync(from + half, from, half, cudaMemcpyDeviceToDevice, stream));
        });
        std::printf("%6d tokens: the driver's copy %8.2f us %6.2f TB/s\n", tokens, copy_us,
                    problem.call_bytes() / copy_us * 1e-6);
        CHECK(cudaFree(memory));
        rows<128, 2>(problem, copy_us, sms);
        rows<128, 4>(problem, copy_us, sms);
        rows<128, 8>(problem, copy_us, sms);
        rows<256, 1>(problem, copy_us, sms);
        rows<256, 2>(problem, copy_us, sms);
        rows<256, 4>(problem, copy_us, sms);
        rows<256, 8>(problem, copy_us, sms);
        rows<512, 2>(problem, copy_us, sms);
        rows<512, 4>(problem, copy_us, sms);
        if (!rope) {
          bulk<64>(problem, copy_us, 8);
          bulk<128>(problem, copy_us, 16);
          bulk<128>(problem, copy_us, 32);
        }
        for (const RowParams& p : problem.calls)
          for (int set = 0; set < p.set_count; ++set) {
            CHECK(cudaFree(const_cast<void*>(p.sets[set].source)));
            CHECK(cudaFree(p.sets[set].target));
          }
      }
    }
  }
  return 0;
}
