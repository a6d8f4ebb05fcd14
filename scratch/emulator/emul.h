#pragma once
#include <cuda_runtime_api.h>
#include <vector_types.h>
#include <algorithm>
#include <climits>
#include <cstdint>
#include <cstring>
using std::max;
using std::min;
#undef __device__
#undef __forceinline__
#undef __global__
#define __device__
#define __forceinline__ inline
#define __global__
extern char* emul_smem;
struct Dim {
  unsigned x, y, z;
};
extern thread_local Dim threadIdx;
extern Dim blockIdx, gridDim;
void emul_tma(uint32_t shared, const void* map, uint32_t barrier, int c, int r, int h, int p);
void emul_init(uint32_t, int);
void emul_arrive(uint32_t, int);
void emul_wait(uint32_t, int);
void emul_bar(int, int, bool);
uint32_t emul_exchange(uint32_t v, int from);  // all lanes
uint32_t emul_ballot(bool);
void emul_sync();
template <class T>
T __shfl_sync(unsigned, T v, int from) {
  uint32_t u;
  memcpy(&u, &v, 4);
  u = emul_exchange(u, from);
  memcpy(&v, &u, 4);
  return v;
}
template <class T>
T __shfl_xor_sync(unsigned, T v, int m) {
  uint32_t u;
  memcpy(&u, &v, 4);
  u = emul_exchange(u, (threadIdx.x % 32) ^ m);
  memcpy(&v, &u, 4);
  return v;
}
template <class T>
T __shfl_up_sync(unsigned, T v, int step) {
  uint32_t u;
  memcpy(&u, &v, 4);
  int from = (int)threadIdx.x % 32 - step;
  u = emul_exchange(u, from < 0 ? threadIdx.x % 32 : from);
  memcpy(&v, &u, 4);
  return v;
}
inline unsigned __ballot_sync(unsigned, bool b) { return emul_ballot(b); }
inline int __any_sync(unsigned, bool b) { return emul_ballot(b) != 0; }
inline void __syncwarp() { emul_sync(); }
inline int __ffs(unsigned x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t{a} * b) >> 32; }
extern long emul_table_begin, emul_table_end;
template <class T>
T __ldg(const T* p) {
  if ((long)p < emul_table_begin || (long)p >= emul_table_end) {
    __builtin_trap();
  }
  return *p;
}
inline int atomicAdd(int* p, int v) {
  int o = *p;
  *p += v;
  return o;
}
inline float __fdividef(float a, float b) { return a / b; }
inline uint4 make_uint4(unsigned a, unsigned b, unsigned c, unsigned d) { return {a, b, c, d}; }
inline uint2 make_uint2(unsigned a, unsigned b) { return {a, b}; }
inline int2 make_int2(int a, int b) { return {a, b}; }
#define __launch_bounds__(...)
#define __grid_constant__
inline void __syncthreads() {}
inline float2 make_float2(float a, float b) { return {a, b}; }
