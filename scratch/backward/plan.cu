#include <cstdio>
#include <cstring>
#include "attention/hopper/backward/dispatch.cc"
namespace jax_baracuda { const std::vector<HopperBackwardKernel>& hopper_backward_kernels() { static const std::vector<HopperBackwardKernel> k; return k; } }
using namespace jax_baracuda;
int main() {
  struct { int B, S, K, H, Hkv, D; } cases[] = {{1,16384,16384,16,16,128},{2,8192,8192,16,16,128},{4,4096,4096,16,16,128},{8,2048,2048,16,16,128},{16,1024,1024,16,16,128},{32,512,512,16,16,128},{1,16384,16384,32,32,64},{2,8192,8192,32,32,64},{4,4096,4096,32,32,64},{16,1024,1024,32,32,64},{32,512,512,32,32,64},{1,16384,16384,21,21,96},
   {2,1000,1020,68,34,128},{2,1000,1020,68,34,64},{2,1000,1020,68,34,96},{2,1000,1020,68,34,40},{1,8192,8192,8,1,128},{2,8192,8192,32,8,128},{9,1900,2000,16,16,128},{9,1000,2000,32,16,128},{9,1000,2000,32,16,64},{1,4096,4096,8,2,128},{3,4096,4096,16,16,128}};
  for (auto& c : cases) {
    BackwardParams p; memset((void*)&p, 0, sizeof p);
    p.packs = c.B, p.sequences = 1, p.q_rows = p.max_q = c.S, p.k_rows = p.max_k = c.K, p.heads = c.H, p.kv_heads = c.Hkv, p.group = c.H / c.Hkv, p.dim = p.dim_v = c.D, p.window_left = p.window_right = -1, p.scale = 1, p.vector_q = p.vector_v = 1;
    const HopperBackwardTile tile = choose_hopper_backward_tile(p);
    p.turn_count = row_blocks_of_pack(p, tile.rows);
    HopperBackwardParams params; params.problem = p; params.tiles = tiles_of(p); params.rows = rows_of(p); params.counter = nullptr;
    p.turns = (int*)4096; params.problem.turns = p.turns; params.problem.dq = (void*)64; params.problem.dq_sum = (float*)128;
    set_order(tile, 132, &params); set_conversion(tile, &params); divide_last_tiles(tile, 132, &params);
    printf("B%d S%d K%d H%d/%d D%d: tiles %d x %d rows, sum rows %d, done %d: divided %d in %d, places %d\n", c.B, c.S, c.K, c.H, c.Hkv, c.D, params.tiles, params.rows, params.sum_rows, params.done != nullptr, params.divided, params.parts, params.places);
  }
}
