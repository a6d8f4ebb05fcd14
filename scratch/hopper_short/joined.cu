#include "attention/hopper/inst/kernel.cuh"
namespace jax_baracuda {
template cudaError_t launch_hopper_kernel<HopperTraits<__nv_bfloat16,128,128,128,2,2,true,true,false,TileUse::kAny,false>>(const HopperForwardParams& params, int ctas, cudaStream_t stream);
}
