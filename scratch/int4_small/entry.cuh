#pragma once
#include <cuda_runtime.h>
#include <string>
#include "int4/small.cuh"
#include "common/dtype.h"
using namespace jax_baracuda;
struct Entry {
  bool f16; int blocks, channel_warps, depth_warps, stages, ctas, warp_blocks, steps, v, shared_bytes;
  const void* kernel;
  int channels() const { return 16 * warp_blocks * channel_warps; }
};
template <class T, int B, int C, int D, int S, int N, int W, int G, int V> Entry make_entry() {
  using Traits = SmallTraits<T, B, C, D, S, N, W, G, V>;
  return {sizeof(T) == 2 && std::is_same<T, __half>::value, B, C, D, S, N, W, G, V, Traits::kSharedBytes, (const void*)int4_small_kernel<Traits>};
}
