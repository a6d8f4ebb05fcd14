#pragma once
#include <ucontext.h>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <vector>
#include "attention/hopper/kernel.cuh"
#include "attention/hopper/launch.h"
#include "common/tensor_map.h"
#include "emul.h"
using namespace jax_baracuda;
#define CHECK(x, ...)                                     \
  do {                                                    \
    if (!(x)) {                                           \
      printf("FAILED %s:%d %s ", __FILE__, __LINE__, #x); \
      printf(__VA_ARGS__);                                \
      puts("");                                           \
      fflush(stdout);                                     \
      abort();                                            \
    }                                                     \
  } while (0)
char* emul_smem;
thread_local Dim threadIdx;
Dim blockIdx, gridDim;
long emul_table_begin, emul_table_end;
static std::mt19937 g_rng;
constexpr int kMost = 512;
static ucontext_t g_main, g_thread[kMost];
static int g_current;
static bool g_done[kMost];
static std::vector<char> g_stack[kMost];
static void (*g_body)();
static long g_progress;
static void yield_thread() { swapcontext(&g_thread[g_current], &g_main); }
struct Warp {
  int arrived;
  long gen;
  uint32_t slot[2][32];
};
static Warp g_warp[16];
uint32_t emul_exchange(uint32_t v, int from) {
  Warp& w = g_warp[g_current / 32];
  const long g = w.gen;
  w.slot[g & 1][g_current % 32] = v;
  if (++w.arrived == 32) {
    w.arrived = 0;
    ++w.gen;
    ++g_progress;
  } else
    while (w.gen == g) yield_thread();
  return w.slot[g & 1][from & 31];
}
uint32_t emul_ballot(bool b) {
  Warp& w = g_warp[g_current / 32];
  const long g = w.gen;
  emul_exchange(b, 0);
  uint32_t r = 0;
  for (int i = 0; i < 32; ++i) r |= w.slot[g & 1][i] << i;
  return r;
}
void emul_sync() { emul_exchange(0, 0); }
struct MBarrier {
  int count, pending;
  long tx, phase;
};
static std::map<uint32_t, MBarrier> g_mbar;
static void settle(MBarrier& m) {
  CHECK(m.pending >= 0, "arrivals");
  if (m.pending == 0 && m.tx == 0) {
    m.pending = m.count;
    ++m.phase;
    ++g_progress;
  }
}
void emul_init(uint32_t b, int n) { g_mbar[b] = {n, n, 0, 0}; }
void emul_arrive(uint32_t b, int bytes) {
  CHECK(g_mbar.count(b), "not a barrier");
  auto& m = g_mbar[b];
  m.tx += bytes;
  CHECK(m.pending > 0, "arrivals %u", b);
  --m.pending;
  settle(m);
}
void emul_wait(uint32_t b, int parity) {
  CHECK(g_mbar.count(b), "not a barrier");
  auto& m = g_mbar[b];
  while ((m.phase & 1) == parity) yield_thread();
}
struct Bar {
  int arrived;
  long gen;
  int n;
};
static Bar g_bar[16];
void emul_bar(int id, int n, bool sync) {
  CHECK(id >= 1 && id < 16, "id");
  Bar& b = g_bar[id];
  if (b.arrived) CHECK(b.n == n, "count");
  b.n = n;
  const long g = b.gen;
  if (++b.arrived == n) {
    b.arrived = 0;
    ++b.gen;
    ++g_progress;
  } else if (sync)
    while (b.gen == g) yield_thread();
}
static void entry() {
  g_body();
  g_done[g_current] = true;
  ++g_progress;
  swapcontext(&g_thread[g_current], &g_main);
}
struct Copy {
  uint32_t shared;
  const void* map;
  uint32_t barrier;
  int at[4];
};
static std::vector<Copy> g_copies;
static void perform(const Copy&);
void emul_tma(uint32_t shared, const void* map, uint32_t barrier, int c, int r, int h, int p) {
  g_copies.push_back({shared, map, barrier, {c, r, h, p}});
}
static void run_cta(int threads, void (*body)()) {
  g_body = body;
  memset(g_warp, 0, sizeof g_warp);
  memset(g_bar, 0, sizeof g_bar);
  for (int t = 0; t < threads; ++t) {
    g_stack[t].resize(1 << 16);
    getcontext(&g_thread[t]);
    g_thread[t].uc_stack.ss_sp = g_stack[t].data();
    g_thread[t].uc_stack.ss_size = g_stack[t].size();
    g_thread[t].uc_link = nullptr;
    makecontext(&g_thread[t], entry, 0);
    g_done[t] = false;
  }
  for (long idle = 0;;) {
    const long before = g_progress;
    int done = 0;
    const int start = g_rng() % threads;
    for (int i = 0; i < threads; ++i) {
      const int t = (start + i) % threads;
      if (g_done[t]) {
        ++done;
        continue;
      }
      g_current = t;
      threadIdx = {unsigned(t), 0, 0};
      swapcontext(&g_main, &g_thread[t]);
    }
    for (size_t i = 0; i < g_copies.size();)
      if (g_rng() % 3 == 0 || idle > 4) {
        perform(g_copies[i]);
        g_copies[i] = g_copies.back();
        g_copies.pop_back();
        ++g_progress;
      } else
        ++i;
    if (done == threads) {
      CHECK(g_copies.empty(), "copies left");
      return;
    }
    idle = g_progress == before ? idle + 1 : 0;
    CHECK(idle < 50, "deadlock");
  }
}
// ---- maps
struct FakeMap {
  const uint16_t* data;
  TensorBoxes b;
};
static_assert(sizeof(FakeMap) <= sizeof(CUtensorMap));
namespace jax_baracuda {
cudaError_t encode_tensor_map(DType, const void* data, const TensorBoxes& b, CUtensorMap* map) {
  FakeMap f = {(const uint16_t*)data, b};
  memcpy(map, &f, sizeof f);
  for (int i = 1; i < 4; ++i) CHECK(b.box[i] >= 1 && b.box[i] <= 256, "box %d %d", i, b.box[i]);
  for (int i = 0; i < 3; ++i) CHECK(b.strides[i] * 2 % 16 == 0, "stride");
  return cudaSuccess;
}
cudaError_t encode_tensor_map(DType t, const void* data, int64_t packs, int64_t rows, int heads,
                              int dim, int br, int bc, CUtensorMap* map) {
  int64_t row = int64_t{heads} * dim;
  return encode_tensor_map(
      t, data,
      TensorBoxes{
          {dim, rows, heads, packs}, {row, dim, row * std::max<int64_t>(rows, 1)}, {bc, br, 1, 1}},
      map);
}
}  // namespace jax_baracuda
static void perform(const Copy& x) {
  const FakeMap& f = *(const FakeMap*)x.map;
  CHECK(x.shared % 128 == 0, "alignment");
  char* to = emul_smem + x.shared;
  long bytes = 0;
  for (int d = 0; d < f.b.box[3]; ++d)
    for (int k = 0; k < f.b.box[2]; ++k)
      for (int j = 0; j < f.b.box[1]; ++j)
        for (int i = 0; i < f.b.box[0]; ++i) {
          int64_t q[4] = {x.at[0] + i, x.at[1] + j, x.at[2] + k, x.at[3] + d};
          bool in = true;
          for (int y = 0; y < 4; ++y)
            in = in && q[y] >= 0 && q[y] < std::max<int64_t>(f.b.sizes[y], 1);
          uint16_t v = in ? f.data[q[0] + q[1] * f.b.strides[0] + q[2] * f.b.strides[1] +
                                   q[3] * f.b.strides[2]]
                          : 0;
          memcpy(to, &v, 2);
          to += 2;
          bytes += 2;
        }
  auto& m = g_mbar[x.barrier];
  m.tx -= bytes;
  settle(m);
}
