// In front of ffi/ on the include path: rows are read past L2's ordinary replacement (evict first).
#pragma once

#define load_global_16_if load_global_16_if_plainly
#include "../../../ffi/device/memory.cuh"
#undef load_global_16_if

namespace jax_baracuda {

__device__ __forceinline__ uint4 load_global_16_if(const void* address, bool valid) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
  uint4 v;
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %5, 0;\n"
      " mov.b32 %0, 0;\n mov.b32 %1, 0;\n mov.b32 %2, 0;\n mov.b32 %3, 0;\n"
      " @p ld.global.nc.L1::no_allocate.L2::cache_hint.L2::128B.v4.b32 {%0, %1, %2, %3}, [%4], "
      "%6;\n}\n"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(address), "r"(static_cast<int>(valid)), "l"(policy));
  return v;
}

}  // namespace jax_baracuda
