// Where K and V rows live: the kernel's parameter that tells a contiguous cache from a paged one.
#pragma once

#include <cstdint>

#include "decode/params.h"
#include "decode/schedule.cuh"
#include "device/memory.cuh"

namespace jax_baracuda {

// A cache [B, Hkv, K, D] or [B, K, Hkv, D], read by strides.
template <class Element>
class ContiguousSource {
 public:
  __device__ ContiguousSource(const DecodeParams& p, const Row& row)
      : origin_(row.b * p.kv_batch_stride + row.kv_head * p.kv_head_stride),
        token_stride_(p.kv_token_stride) {}

  // Element offset of a token's row in both stores.
  __device__ int64_t row(int token) const { return origin_ + token * token_stride_; }

 private:
  int64_t origin_;
  int64_t token_stride_;
};

// Chunk `chunk` (16 bytes) of a row; zeros past the head dim or where the row is not `valid`. Nothing
// outside the row is read: rows that are masked may lie past the end of the cache or hold NaN.
template <bool Vector, class Element>
__device__ __forceinline__ uint4 load_chunk(const Element* row, int chunk, int head_dim,
                                            bool valid) {
  constexpr int kElements = 16 / sizeof(Element);
  if constexpr (Vector) {
    return load_global_16_if(row + chunk * kElements, valid && chunk * kElements < head_dim);
  } else {
    Element elements[kElements];
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int d = chunk * kElements + i;
      elements[i] = valid && d < head_dim ? row[d] : Element(0.0f);
    }
    uint4 packed;
    memcpy(&packed, elements, sizeof(packed));
    return packed;
  }
}

}  // namespace jax_baracuda
