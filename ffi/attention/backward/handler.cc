// FFI binding of flash_attention's backward pass: checks the buffers, fills the parameters,
// launches.
#include "attention/backward/handler.h"

#include <initializer_list>
#include <utility>

#include "attention/backward/launch.h"
#include "attention/operands.h"
#include "attention/segments.h"
#include "common/status.h"

namespace jax_baracuda {
namespace {

namespace ffi = xla::ffi;

bool aligned(std::initializer_list<const void*> addresses) {
  for (const void* address : addresses)
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) return false;
  return true;
}

// --- dQ, dK, dV, and the gradient of a bias that all rows share ---

constexpr char kBackward[] = "flash_attention_backward";

struct Scratch {
  void* data = nullptr;
  int64_t bytes = 0;
};

// Operands, results and attributes, in the order of the binding.
struct BackwardCall {
  ffi::AnyBuffer query, key, value, out, lse, dout, dlse;
  AttentionOptions options;
  ffi::Result<ffi::AnyBuffer> dq, dk, dv, delta;
  // The gradient of a bias that all rows share, if it is wanted; the workspace.
  ffi::RemainingRets others;
  AttentionAttributes attributes;
  bool deterministic;
  bool portable;  // whether to leave out the kernels of one architecture

  template <class Binding>
  static auto bind(Binding&& binding) {
    return AttentionAttributes::bind(
               AttentionOptions::bind(std::forward<Binding>(binding)
                                          .template Arg<ffi::AnyBuffer>()   // query
                                          .template Arg<ffi::AnyBuffer>()   // key
                                          .template Arg<ffi::AnyBuffer>()   // value
                                          .template Arg<ffi::AnyBuffer>()   // out
                                          .template Arg<ffi::AnyBuffer>()   // lse
                                          .template Arg<ffi::AnyBuffer>()   // dout
                                          .template Arg<ffi::AnyBuffer>())  // dlse
                   .template Ret<ffi::AnyBuffer>()                          // dq
                   .template Ret<ffi::AnyBuffer>()                          // dk
                   .template Ret<ffi::AnyBuffer>()                          // dv
                   .template Ret<ffi::AnyBuffer>()                          // delta
                   .RemainingRets())
        .template Attr<bool>("deterministic")
        .template Attr<bool>("portable");
  }
};

// The results that follow: see BackwardCall.
ffi::Error read_others(const BackwardCall& c, BackwardParams* p, Scratch* workspace) {
  const bool with_bias = c.others.size() == 2;
  auto last = c.others.get<ffi::AnyBuffer>(with_bias ? 1 : 0);
  if (last.has_error()) return last.error();
  workspace->data = (*last)->untyped_data();
  workspace->bytes = static_cast<int64_t>((*last)->size_bytes());
  if (!with_bias) return ffi::Error::Success();
  auto dbias = c.others.get<ffi::AnyBuffer>(0);
  if (dbias.has_error()) return dbias.error();
  const auto dims = c.options.bias.dimensions();
  if (p->bias.type == BiasType::kNone || p->bias.type == BiasType::kMask || dims[2] != 1)
    return invalid_argument(kBackward, "only a bias of floats with one row has a gradient here");
  if (!has_shape(**dbias, c.options.bias.element_type(), {dims[0], dims[1], 1, dims[3]}))
    return invalid_argument(kBackward, "dbias must be like bias");
  p->dbias = (*dbias)->untyped_data();
  return ffi::Error::Success();
}

// The parameters and the kernels; no kernel where there is nothing to compute.
ffi::Error plan(BackwardCall& c, BackwardParams* p, BackwardPlan* plan, Scratch* workspace) {
  DType dtype;
  if (ffi::Error error =
          read_problem(kBackward, c.query, c.key, c.value, c.options, c.attributes, &dtype, p);
      error.failure())
    return error;
  const auto type = c.query.element_type();
  if (!has_shape(c.out, type, {p->packs, p->q_rows, p->heads, p->dim_v}) ||
      !has_shape(c.dout, type, {p->packs, p->q_rows, p->heads, p->dim_v}))
    return invalid_argument(kBackward, "out and dout must be [B, S, Hq, Dv] like query");
  const bool dlse = c.dlse.dimensions().size() != 1;
  if (!has_shape(c.lse, ffi::F32, {p->packs, p->heads, p->q_rows}) ||
      !has_shape(*c.delta, ffi::F32, {p->packs, p->heads, p->q_rows}) ||
      (dlse && !has_shape(c.dlse, ffi::F32, {p->packs, p->heads, p->q_rows})))
    return invalid_argument(kBackward, "lse, dlse and delta must be float32 [B, Hq, S]");
  if (!has_shape(*c.dq, type, {p->packs, p->q_rows, p->heads, p->dim}) ||
      !has_shape(*c.dk, type, {p->packs, p->k_rows, p->kv_heads, p->dim}) ||
      !has_shape(*c.dv, type, {p->packs, p->k_rows, p->kv_heads, p->dim_v}))
    return invalid_argument(kBackward, "dq, dk and dv must be like query, key and value");
  if (ffi::Error error = read_others(c, p, workspace); error.failure()) return error;
  if (workspace->bytes < backward_workspace_bytes(*p))
    return invalid_argument(kBackward, "the workspace is too small");
  p->out = c.out.untyped_data();
  p->lse = c.lse.typed_data<float>();
  p->dout = c.dout.untyped_data();
  p->dlse = dlse ? c.dlse.typed_data<float>() : nullptr;
  p->dq = c.dq->untyped_data();
  p->dk = c.dk->untyped_data();
  p->dv = c.dv->untyped_data();
  p->delta = c.delta->typed_data<float>();
  p->deterministic = c.deterministic;
  p->vector_q = p->vector_q && aligned({p->dq, p->dk});
  p->vector_v = p->vector_v && aligned({p->out, p->dout, p->dv});
  return to_ffi_error(plan_attention_backward(dtype, *p, c.portable, workspace->bytes, plan),
                      kBackward);
}

ffi::Error initialize(BackwardCall c) {
  BackwardParams params = {};
  BackwardPlan chosen;
  Scratch workspace;
  return plan(c, &params, &chosen, &workspace);
}

ffi::Error execute(cudaStream_t stream, BackwardCall c) {
  BackwardParams params = {};
  BackwardPlan chosen;
  Scratch workspace;
  if (ffi::Error error = plan(c, &params, &chosen, &workspace); error.failure()) return error;
  return to_ffi_error(launch_attention_backward(chosen, params, workspace.data, stream), kBackward);
}

// --- The gradient of another bias ---

constexpr char kBiasGrad[] = "flash_attention_bias_grad";

struct BiasGradCall {
  ffi::AnyBuffer query, key, value, lse, dout, delta;
  AttentionOptions options;
  ffi::Result<ffi::AnyBuffer> dbias, workspace;
  AttentionAttributes attributes;

  template <class Binding>
  static auto bind(Binding&& binding) {
    return AttentionAttributes::bind(
        AttentionOptions::bind(std::forward<Binding>(binding)
                                   .template Arg<ffi::AnyBuffer>()   // query
                                   .template Arg<ffi::AnyBuffer>()   // key
                                   .template Arg<ffi::AnyBuffer>()   // value
                                   .template Arg<ffi::AnyBuffer>()   // lse
                                   .template Arg<ffi::AnyBuffer>()   // dout
                                   .template Arg<ffi::AnyBuffer>())  // delta
            .template Ret<ffi::AnyBuffer>()                          // dbias
            .template Ret<ffi::AnyBuffer>());                        // workspace
  }
};

ffi::Error plan(BiasGradCall& c, BiasGradParams* p, DType* dtype) {
  if (ffi::Error error =
          read_problem(kBiasGrad, c.query, c.key, c.value, c.options, c.attributes, dtype, p);
      error.failure())
    return error;
  if (p->bias.type == BiasType::kNone || p->bias.type == BiasType::kMask)
    return invalid_argument(kBiasGrad, "only a bias of floats has a gradient");
  const auto dims = c.options.bias.dimensions();
  if (!has_shape(*c.dbias, c.options.bias.element_type(), {dims[0], dims[1], dims[2], dims[3]}))
    return invalid_argument(kBiasGrad, "dbias must be like bias");
  if (!has_shape(c.dout, c.query.element_type(), {p->packs, p->q_rows, p->heads, p->dim_v}) ||
      !has_shape(c.lse, ffi::F32, {p->packs, p->heads, p->q_rows}) ||
      !has_shape(c.delta, ffi::F32, {p->packs, p->heads, p->q_rows}))
    return invalid_argument(kBiasGrad,
                            "dout must be like the output, lse and delta float32 [B, Hq, S]");
  if (static_cast<int64_t>(c.workspace->size_bytes()) < segment_range_bytes(*p))
    return invalid_argument(kBiasGrad, "the workspace is too small");
  p->lse = c.lse.typed_data<float>();
  p->dout = c.dout.untyped_data();
  p->delta = c.delta.typed_data<float>();
  p->dbias = c.dbias->untyped_data();
  p->bias_rows = static_cast<int>(dims[2]);
  p->bias_keys = static_cast<int>(dims[3]);
  p->vector_v = p->vector_v && aligned({p->dout});
  return to_ffi_error(plan_attention_bias_grad(*dtype, *p), kBiasGrad);
}

ffi::Error initialize(BiasGradCall c) {
  BiasGradParams params = {};
  DType dtype;
  return plan(c, &params, &dtype);
}

ffi::Error execute(cudaStream_t stream, BiasGradCall c) {
  BiasGradParams params = {};
  DType dtype;
  if (ffi::Error error = plan(c, &params, &dtype); error.failure()) return error;
  return to_ffi_error(
      launch_attention_bias_grad(dtype, params, c.workspace->untyped_data(), stream), kBiasGrad);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    flash_attention_backward_initialize,
    [](auto... call) { return initialize(BackwardCall{call...}); },
    BackwardCall::bind(ffi::Ffi::Bind<ffi::ExecutionStage::kInitialize>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    flash_attention_backward_execute,
    [](cudaStream_t stream, auto... call) { return execute(stream, BackwardCall{call...}); },
    BackwardCall::bind(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>()),
    {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    flash_attention_bias_grad_initialize,
    [](auto... call) { return initialize(BiasGradCall{call...}); },
    BiasGradCall::bind(ffi::Ffi::Bind<ffi::ExecutionStage::kInitialize>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    flash_attention_bias_grad_execute,
    [](cudaStream_t stream, auto... call) { return execute(stream, BiasGradCall{call...}); },
    BiasGradCall::bind(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>()),
    {ffi::Traits::kCmdBufferCompatible});

}  // namespace jax_baracuda
