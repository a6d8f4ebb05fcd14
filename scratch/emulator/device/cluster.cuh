#pragma once
#include "emul.h"
namespace jax_baracuda {
inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const char*>(p) - emul_smem);
}
}  // namespace jax_baracuda
