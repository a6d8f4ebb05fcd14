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
#ifdef MARKS
static void* marks() { void* q; cudaGetSymbolAddress(&q, g_marks); return q; }
#else
static void* marks() { return nullptr; }
#endif
#ifdef CUSTOM
#include CUSTOM_FILE
#endif
#define STR2(x) #x
#define STR(x) STR2(x)
extern "C" Entry SYM() {
#if KIND == 0
  #ifdef CUSTOM
  static constexpr SmallTile t = kCustom;
#else
  static constexpr SmallTile t = kSmallTiles[TILE];
#endif
  using Traits = SmallTraits<T_, t.blocks, t.channel_warps, t.depth_warps, t.stages, t.ctas_per_sm, t.warp_blocks, STEPS>;
  return {STR(SYM), 0, std::is_same<T_, __half>::value, Traits::kRows, Traits::kChannels, Traits::kThreads, t.ctas_per_sm, STEPS, Traits::kSharedBytes, t.channel_warps, t.depth_warps, t.warp_blocks * t.channel_warps, (const void*)int4_small_kernel<Traits>, marks};
#else
  static constexpr HopperInt4Tile t = kMediumTiles[TILE];
  using Traits = MediumTraits<T_, t.n, t.channel_groups, t.depth_groups, t.stages, STEPS>;
  return {STR(SYM), 1, std::is_same<T_, __half>::value, t.n, Traits::kChannels, Traits::kThreads, 1, STEPS, Traits::kSharedBytes, t.channel_groups, t.depth_groups, 0, (const void*)int4_medium_kernel<Traits>, marks};
#endif
}
