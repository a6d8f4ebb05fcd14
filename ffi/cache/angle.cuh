// Cosine and sine of a rotation, exact for every position that int32 holds.
#pragma once

namespace jax_baracuda {

// (cosine, sine) of a float32 angle below 2^31 or so. The quarter turns are taken out in float64, which costs five
// operations and no branch: sinf's own reduction of large angles is a slow path for some lanes of a warp.
__device__ __forceinline__ float2 cos_sin(float angle) {
  constexpr double kQuartersPerRadian = 0.63661977236758134308;
  constexpr double kRadiansPerQuarter = 1.57079632679489661923;
  constexpr double kHalfTurnsPerRadian = 0.31830988618379067154;
  constexpr double kRounding =
      6755399441055744.0;  // 1.5 * 2^52: what is added to it is rounded to whole numbers
  const double rounded = fma(static_cast<double>(angle), kQuartersPerRadian, kRounding);
  const int quarters = __double2loint(rounded);  // its low bits
  const double rest = fma(rounded - kRounding, -kRadiansPerQuarter, static_cast<double>(angle));
  float sine, cosine;
  sincospif(static_cast<float>(rest * kHalfTurnsPerRadian), &sine, &cosine);
  const float x = quarters & 1 ? -sine : cosine, y = quarters & 1 ? cosine : sine;
  return quarters & 2 ? make_float2(-x, -y) : make_float2(x, y);
}

}  // namespace jax_baracuda
