#include "attention/backward/launch.h"
using namespace jax_baracuda;
extern "C" __attribute__((visibility("default"))) long bwd_bytes(const BackwardParams* p) { return 1 << 24; }
extern "C" __attribute__((visibility("default"))) int bwd_run(const BackwardParams* p, void* ws) {
  BiasGradParams b;
  static_cast<AttentionProblem&>(b) = *p;
  b.lse = p->lse, b.dout = p->dout, b.delta = p->delta, b.dbias = ws;
  b.bias_rows = 1, b.bias_keys = p->k_rows;
  int e = plan_attention_bias_grad(DType::kBF16);
  return e ? e : launch_attention_bias_grad(DType::kBF16, b, static_cast<char*>(ws) + (1 << 23), 0);
}
