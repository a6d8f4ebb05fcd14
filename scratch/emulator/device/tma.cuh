#pragma once
#include <cstdint>
#include "emul.h"
namespace jax_baracuda {
inline constexpr uint64_t kEvictFirst = 1, kEvictLast = 2;
inline void tma_prefetch_map(const void*) {}
inline void tma_load(uint32_t shared, const void* map, uint32_t barrier, int c, int r, int h, int p,
                     uint64_t) {
  emul_tma(shared, map, barrier, c, r, h, p);
}
inline void fence_async_shared() {}
}  // namespace jax_baracuda
