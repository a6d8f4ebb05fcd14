#pragma once
namespace jax_baracuda {
inline uint4 philox(uint4 a, uint2) { return a; }
}  // namespace jax_baracuda
