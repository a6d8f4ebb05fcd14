// One variant: all of the large kernel's path in a translation unit of its own namespace.
#include "int4/inst/large.cuh"
#include "common/device_info.h"
#include "common/tensor_map.cc"
#include "int4/dispatch.cc"
namespace jax_baracuda {
cudaError_t prepare_int4_combine(DType) { return cudaSuccess; }
cudaError_t launch_int4_combine(DType, const Int4Params&, bool, cudaStream_t) { return cudaErrorNotSupported; }
const std::vector<SmallInt4Kernel>& small_int4_kernels() { static const std::vector<SmallInt4Kernel> k; return k; }
const std::vector<HopperInt4Kernel>& hopper_int4_kernels() {
  static const std::vector<HopperInt4Kernel> k = { large_int4_kernel_entry<DType::KDTYPE, 1, 4>(), large_int4_kernel_entry<DType::KDTYPE, 0, 4>(),
#ifdef WITH2
   large_int4_kernel_entry<DType::KDTYPE, 1, 2>(),
#endif
  }; return k; }
}
using namespace jax_baracuda;
#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
extern "C" int CAT(VNAME, _launch)(int medium, int tile, int splits, int streamed, const void* shape, const void* params, cudaStream_t stream) {
  if (medium) return 98;
  const Int4Shape& s = *(const Int4Shape*)shape;
  const int steps = std::min(scale_steps(s), 4);
  for (const HopperInt4Kernel& k : hopper_int4_kernels())
    if (k.dtype == s.dtype && k.scale_steps == steps && k.tile == tile) {
      if (const int pair = large_pair(kLargeTiles[tile].n); pair > 1 ? splits > 1 : streamed) return 98;
      if (cudaError_t e = k.prepare()) return e;
      Int4Plan plan; plan.hopper = &k; plan.splits = splits; plan.cluster = splits > 1; plan.streamed = streamed;
      return launch_int4(s, plan, *(const Int4Params*)params, stream);
    }
  return 98;
}
extern "C" void CAT(VNAME, _clock)(double* out) {
#ifdef LOOPCLOCK
  long long c[132 * 2]; cudaMemcpyFromSymbol(c, g_loop_clock, sizeof c); double cy = 0, n = 0, mx = 0; for (int i = 0; i < 132; ++i) { cy += c[2 * i]; n += c[2 * i + 1]; }
  out[0] = n ? cy / n : 0; memset(c, 0, sizeof c); cudaMemcpyToSymbol(g_loop_clock, c, sizeof c);
#else
  out[0] = 0;
#endif
}
