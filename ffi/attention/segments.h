// The least and greatest segment id of each block of rows, so that whole blocks can be skipped.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "attention/params.h"

namespace jax_baracuda {

// Bytes that set_segment_ranges takes of the workspace: 0 unless a dense call has segment ids.
inline int64_t segment_range_bytes(const AttentionProblem& p) {
  if (!p.query_segments || p.cu_seqlens_q) return 0;
  const int64_t q = (p.q_rows + kSegmentBlock - 1) / kSegmentBlock;
  const int64_t k = (p.k_rows + kSegmentBlock - 1) / kSegmentBlock;
  return (q + k) * p.packs * static_cast<int64_t>(sizeof(int2));
}

// Points the problem at `workspace` and enqueues the kernel that fills it; nothing if there is no need.
cudaError_t launch_segment_ranges(AttentionProblem* problem, void* workspace, cudaStream_t stream);

}  // namespace jax_baracuda
