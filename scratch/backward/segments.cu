#include "attention/segments.h"

#include <climits>

namespace jax_baracuda {
namespace {

// A warp a block of rows; blocks of a pack never cross into the next one.
__global__ void segment_range_kernel(const int32_t* ids, int2* ranges, int rows, int blocks,
                                     int64_t total) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (at >= total) return;
  const int lane = threadIdx.x % 32;
  const int64_t pack = at / blocks;
  const int first = static_cast<int>(at % blocks) * kSegmentBlock;
  int least = INT_MAX, greatest = INT_MIN;
  for (int row = first + lane; row < min(first + kSegmentBlock, rows); row += 32) {
    const int id = ids[pack * rows + row];
    least = min(least, id);
    greatest = max(greatest, id);
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    least = min(least, __shfl_xor_sync(0xffffffffu, least, mask));
    greatest = max(greatest, __shfl_xor_sync(0xffffffffu, greatest, mask));
  }
  if (lane == 0) ranges[at] = make_int2(least, greatest);
}

void fill(const int32_t* ids, int2* ranges, int rows, int packs, cudaStream_t stream) {
  constexpr int kWarps = 4;
  const int blocks = (rows + kSegmentBlock - 1) / kSegmentBlock;
  const int64_t total = static_cast<int64_t>(blocks) * packs;
  if (total == 0) return;
  segment_range_kernel<<<static_cast<unsigned>((total + kWarps - 1) / kWarps), 32 * kWarps, 0,
                         stream>>>(ids, ranges, rows, blocks, total);
}

}  // namespace

cudaError_t launch_segment_ranges(AttentionProblem* p, void* workspace, cudaStream_t stream) {
  if (segment_range_bytes(*p) == 0) return cudaSuccess;
  const int64_t q_blocks = (p->q_rows + kSegmentBlock - 1) / kSegmentBlock;
  int2* q_ranges = static_cast<int2*>(workspace);
  int2* k_ranges = q_ranges + q_blocks * p->packs;
  fill(p->query_segments, q_ranges, p->q_rows, p->packs, stream);
  fill(p->kv_segments, k_ranges, p->k_rows, p->packs, stream);
  p->query_segment_range = q_ranges;
  p->kv_segment_range = k_ranges;
  return cudaGetLastError();
}

}  // namespace jax_baracuda
