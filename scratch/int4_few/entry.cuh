#pragma once
#include <cuda_runtime.h>
#include <type_traits>
#include "int4/config.h"
#include "int4/small.cuh"
#include "int4/medium.cuh"
#include "common/dtype.h"
using namespace jax_baracuda;
struct Entry {
  bool medium, f16; int rows, channels, threads, ctas, blocks16, steps, v, shared_bytes, a, b, stages; int units;
  const void* kernel;
};
template <class T, int B, int C, int D, int S, int N, int W, int G, int V> Entry make_small() {
  using Traits = SmallTraits<T, B, C, D, S, N, W, G, V>;
  return {false, std::is_same<T, __half>::value, 8 * B, Traits::kChannels, Traits::kThreads, N, W * C, G, V, Traits::kSharedBytes, C, D, S, W, (const void*)int4_small_kernel<Traits>};
}
template <class T, int N, int C, int D, int S, int G, int V> Entry make_medium() {
  using Traits = MediumTraits<T, N, C, D, S, G, V>;
  return {true, std::is_same<T, __half>::value, N, Traits::kChannels, Traits::kThreads, 1, 0, G, V, Traits::kSharedBytes, C, D, Traits::kStages, 0, (const void*)int4_medium_kernel<Traits>};
}
