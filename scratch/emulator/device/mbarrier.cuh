#pragma once
#include <cstdint>
#include "emul.h"
namespace jax_baracuda {
inline void mbarrier_init(uint32_t b, int n) { emul_init(b, n); }
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint32_t b) { emul_arrive(b, 0); }
inline void mbarrier_arrive_expect(uint32_t b, int bytes) { emul_arrive(b, bytes); }
inline void mbarrier_wait(uint32_t b, int parity) { emul_wait(b, parity); }
inline void named_barrier_sync(int id, int n) { emul_bar(id, n, true); }
inline void named_barrier_arrive(int id, int n) { emul_bar(id, n, false); }
}  // namespace jax_baracuda
