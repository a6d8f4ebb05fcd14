// One variant of the kernel: -Djax_baracuda=NAMESPACE -DNAME=... -DARGS=dim,dimv,n,groups,qstages,pingpong,overlap,features,use,skips
#include <new>
#include "attention/hopper/inst/kernel.cuh"
#ifndef BITS
#define BITS
#endif
using namespace jax_baracuda;
extern "C" void NAME(void* to) {
  using Traits = HopperTraits<__half, ARGS>;
  static const HopperTile tile = {Traits::kFeatures, Traits::kDim, Traits::kDimV, Traits::kN, Traits::kGroups, Traits::kQueryStages, Traits::kPingpong, Traits::kOverlap, 0, 0,
      Traits::kTwoCtas ? TileUse::kTwoCtas : Traits::kFewTiles ? TileUse::kFewTiles : TileUse::kAny};
  new (to) HopperKernel{DType::kF16, tile, prepare_hopper_forward<Traits>, launch_hopper_kernel<Traits>, nullptr};
}
