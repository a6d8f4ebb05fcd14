// The Hopper kernels of a tree behind C functions, so that two trees fit in a program. -DAPI(name)=...
#include "int4/launch.h"
#include <algorithm>
namespace jax_baracuda {
const std::vector<SmallInt4Kernel>& small_int4_kernels() { static const std::vector<SmallInt4Kernel> k; return k; }
}
extern "C" { __attribute__((weak)) int g_skip_combine; }
using namespace jax_baracuda;
extern "C" int API_LAUNCH(int medium, int tile, int splits, int streamed, const void* shape, const void* params, cudaStream_t stream) {
  const Int4Shape& s = *(const Int4Shape*)shape;
  const int steps = std::min(scale_steps(s), medium ? 8 : 4);
  for (const HopperInt4Kernel& k : hopper_int4_kernels())
    if (k.dtype == s.dtype && k.medium == (medium != 0) && k.tile == tile && k.scale_steps == steps) {
      if (cudaError_t e = k.prepare()) return e;
      Int4Plan plan; plan.hopper = &k; plan.splits = splits; plan.cluster = splits > 1;
#ifdef HAS_TAIL
      if (streamed == 4) { streamed = 0; for (const HopperInt4Kernel& t : hopper_int4_kernels()) if (t.dtype == s.dtype && t.medium && t.tile == 8 && t.scale_steps == std::min(scale_steps(s), 8)) plan.tail = &t; if (!plan.tail) return 97; if (cudaError_t e = plan.tail->prepare()) return e; }
#endif
#ifdef HAS_STREAM
      plan.streamed = streamed % 2 == 1; g_skip_combine = streamed == 3; if (streamed == 2) plan.cluster = false;
#endif
      return launch_int4(s, plan, *(const Int4Params*)params, stream);
    }
  return 98;
}
// medium, tile, splits of the plan
extern "C" void API_PLAN(const void* shape, int* out) {
  const Int4Shape& s = *(const Int4Shape*)shape;
  Int4Device d; d.sms = 132; d.clusters = true; d.workspace_bytes = int4_workspace_bytes(s.rows, s.strips * 64, s.depth_tiles);
  const HopperChoice c = choose_hopper(s, d);
  out[0] = c.medium; out[1] = c.tile; out[2] = c.split.splits; out[3] = 0;
#ifdef HAS_STREAM
  out[3] = c.split.parts ? 2 : c.split.streamed;
#ifdef HAS_TAIL
  if (c.split.tail) out[3] = 4;
#endif
#endif
}
