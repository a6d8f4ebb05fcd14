#pragma once
namespace jax_baracuda {
inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
static inline float negative_infinity(){return -INFINITY;}
static inline float exp2_approx(float x){return exp2f(x);}
template<class T> static inline T from_float(float x){return T(x);}
}
