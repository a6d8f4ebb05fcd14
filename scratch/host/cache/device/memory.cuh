#pragma once
#include <cstdint>
#include <cstring>
struct uint4_{uint32_t x,y,z,w;};
namespace jax_baracuda { static inline uint4 load_global_16_if(const void* a, bool v){ uint4 r={0,0,0,0}; if(v){ if(reinterpret_cast<uintptr_t>(a)%16) {printf("misaligned\n");abort();} memcpy(&r,a,16);} return r;} }
