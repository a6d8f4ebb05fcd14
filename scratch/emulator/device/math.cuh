#pragma once
#include <cmath>
#include "emul.h"
namespace jax_baracuda {
constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;
inline float negative_infinity() { return -INFINITY; }
inline float exp2_approx(float x) { return exp2f(x); }
template <int a, int b>
float butterfly_max(float x) {
  for (int m = a; m <= b; m *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, m));
  return x;
}
template <int a, int b>
float butterfly_sum(float x) {
  for (int m = a; m <= b; m *= 2) x += __shfl_xor_sync(~0u, x, m);
  return x;
}
}  // namespace jax_baracuda
