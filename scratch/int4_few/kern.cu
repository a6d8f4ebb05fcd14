// -DKIND=0|1 -DSYM=.. -DT_=.. -DABL=..
#include "int4/config.h"
#if KIND == 0
#include "int4/small.cuh"
#else
#include "int4/medium.cuh"
#endif
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include "entry.cuh"
#include <type_traits>
using namespace jax_baracuda;
#define STR2(x) #x
#define STR(x) STR2(x)
extern "C" Entry SYM() {
#if KIND == 0
  static constexpr SmallTile t = kSmallTiles[TILE];
  using Traits = SmallTraits<T_, t.blocks, t.channel_warps, t.depth_warps, t.stages, t.ctas_per_sm, t.warp_blocks, STEPS>;
  return {STR(SYM), 0, std::is_same<T_, __half>::value, Traits::kRows, Traits::kChannels, Traits::kThreads, t.ctas_per_sm, STEPS, Traits::kSharedBytes, t.channel_warps, t.depth_warps, t.warp_blocks * t.channel_warps, (const void*)int4_small_kernel<Traits>};
#else
  static constexpr HopperInt4Tile t = kMediumTiles[TILE];
  using Traits = MediumTraits<T_, t.n, t.channel_groups, t.depth_groups, t.stages, STEPS>;
  return {STR(SYM), 1, std::is_same<T_, __half>::value, t.n, Traits::kChannels, Traits::kThreads, 1, STEPS, Traits::kSharedBytes, t.channel_groups, t.depth_groups, 0, (const void*)int4_medium_kernel<Traits>};
#endif
}
