#define jax_baracuda jax_baracuda_evict
#include "decode/inst/kernel.cuh"
#include "decode/ring.cuh"
namespace jax_baracuda {
using T = __nv_bfloat16;
#ifndef HEAD
#define HEAD 128
#endif
using R = MmaTile<T, HEAD, 8, true, false>;
constexpr int kThreads = 32 * max_warps(DType::kBF16, HEAD, 8, true);
}
extern "C" const void* evict_kernel(int which) {
  using namespace jax_baracuda;
  return which ? reinterpret_cast<const void*>(decode_kernel<R, PagedSource, kThreads>) : reinterpret_cast<const void*>(decode_kernel<R, ContiguousSource, kThreads>);
}
