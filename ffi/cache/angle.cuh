// Cosine and sine of a rotation, for every position that int32 holds.
#pragma once

namespace jax_baracuda {

// (cosine, sine) of a float32 angle, to 0.9 units in the last place up to 10^7 and to 1.3e-7 up to 2^31. Quarter turns
// are taken out in float64: four operations and no branch, where sinf has a slow path for large angles, which some
// lanes of a warp take and others wait for.
__device__ __forceinline__ float2 cos_sin(float angle) {
  constexpr double kQuartersPerRadian = 0.63661977236758134308;
  constexpr double kRadiansPerQuarter = 1.57079632679489661923;
  constexpr double kRounding = 6755399441055744.0;  // 1.5 * 2^52: rounds what is added to it
  const double rounded = fma(static_cast<double>(angle), kQuartersPerRadian, kRounding);
  const int quarters = __double2loint(rounded);  // its low bits
  const float rest =
      static_cast<float>(fma(rounded - kRounding, -kRadiansPerQuarter, static_cast<double>(angle)));

  // Polynomials of least error on [-pi/4, pi/4]: 3.6e-9 relative, 1e-10 absolute.
  const float square = rest * rest;
  float sine = fmaf(square, -0.000195172978f, 0.00833217814f);
  sine = fmaf(square, sine, -0.166666549f);
  sine = fmaf(rest * square, sine, rest);
  float cosine = fmaf(square, 2.44384496e-05f, -0.00138873675f);
  cosine = fmaf(square, cosine, 0.0416666469f);
  cosine = fmaf(square, cosine, -0.5f);
  cosine = fmaf(square, cosine, 1.0f);

  const float x = quarters & 1 ? -sine : cosine, y = quarters & 1 ? cosine : sine;
  return quarters & 2 ? make_float2(-x, -y) : make_float2(x, y);
}

}  // namespace jax_baracuda
