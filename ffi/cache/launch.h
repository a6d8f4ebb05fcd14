// Launch of the row kernel. Host interface, free of CUDA device code and of XLA.
#pragma once

#include <cuda_runtime_api.h>

#include "cache/params.h"

namespace jax_baracuda {

// Loads the kernels of a plan on the current device, so that they can be launched into a CUDA graph.
cudaError_t prepare_rows(RowPlan plan);

// Enqueues the one kernel; nothing where there are no rows. Fills in what config.h chooses.
cudaError_t launch_rows(const RowPlan& plan, RowParams params, cudaStream_t stream);

}  // namespace jax_baracuda
