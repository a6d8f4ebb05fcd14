#pragma once
namespace jax_baracuda {
template<class T> static inline T from_float(float x){ return T(x);} 
template<> inline float from_float<float>(float x){return x;}
}
