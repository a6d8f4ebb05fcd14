// What kernels for the gradient of a bias have in common: which part of it a CTA computes, and how it is written.
#pragma once

#include "attention/backward/params.h"
#include "device/math.cuh"

namespace jax_baracuda {

// kSide rows and keys; all rows if the bias repeats one.
struct BiasPart {
  int sequence, head;  // -1: all of them
  int row, key;        // the first ones
};

template <int kSide>
__device__ __forceinline__ BiasPart find_bias_part(const BiasGradParams& p) {
  const int key_parts = (p.bias_keys + kSide - 1) / kSide;
  const int row_parts = (p.bias_rows + kSide - 1) / kSide;
  const int heads = p.bias.head_stride == 0 ? 1 : p.heads;
  int64_t index = blockIdx.x;
  BiasPart part;
  part.key = static_cast<int>(index % key_parts) * kSide;
  index /= key_parts;
  part.row = static_cast<int>(index % row_parts) * kSide;
  index /= row_parts;
  part.head = p.bias.head_stride == 0 ? -1 : static_cast<int>(index % heads);
  index /= heads;
  part.sequence = p.bias.sequence_stride == 0 ? -1 : static_cast<int>(index);
  return part;
}
// How many there are.
inline int64_t bias_parts(const BiasGradParams& p, int side) {
  int64_t parts = int64_t{(p.bias_keys + side - 1) / side} * ((p.bias_rows + side - 1) / side);
  if (p.bias.head_stride != 0) parts *= p.heads;
  if (p.bias.sequence_stride != 0) parts *= int64_t{p.packs} * p.sequences;
  return parts;
}
// Where row 0 and key 0 of the part's sequence and head are in the bias.
__device__ __forceinline__ int64_t bias_start(const BiasGradParams& p, const BiasPart& part) {
  return max(part.sequence, 0) * p.bias.sequence_stride + max(part.head, 0) * p.bias.head_stride;
}

__device__ __forceinline__ void store_bias(const BiasGradParams& p, int64_t at, float value) {
  switch (p.bias.type) {
    case BiasType::kF16:
      static_cast<__half*>(p.dbias)[at] = from_float<__half>(value);
      break;
    case BiasType::kBF16:
      static_cast<__nv_bfloat16*>(p.dbias)[at] = from_float<__nv_bfloat16>(value);
      break;
    default:
      static_cast<float*>(p.dbias)[at] = value;
  }
}

}  // namespace jax_baracuda
