// FFI binding of flash_attention's forward pass: checks the buffers, fills ForwardParams, launches.
#include "attention/forward/handler.h"

#include <utility>

#include "attention/forward/launch.h"
#include "attention/operands.h"
#include "common/status.h"

namespace jax_baracuda {
namespace {

namespace ffi = xla::ffi;

constexpr char kOp[] = "flash_attention";

// Operands, results and attributes, in the order of the binding.
struct ForwardCall {
  ffi::AnyBuffer query, key, value;
  AttentionOptions options;
  ffi::Result<ffi::AnyBuffer> out, lse, workspace;
  AttentionAttributes attributes;
  bool portable;  // whether to leave out the kernels of one architecture

  template <class Binding>
  static auto bind(Binding&& binding) {
    return AttentionAttributes::bind(
               AttentionOptions::bind(std::forward<Binding>(binding)
                                          .template Arg<ffi::AnyBuffer>()   // query
                                          .template Arg<ffi::AnyBuffer>()   // key
                                          .template Arg<ffi::AnyBuffer>())  // value
                   .template Ret<ffi::AnyBuffer>()                          // out
                   .template Ret<ffi::AnyBuffer>()                          // lse
                   .template Ret<ffi::AnyBuffer>())                         // workspace
        .template Attr<bool>("portable");
  }
};

// The parameters and the kernel; none where there is nothing to compute.
ffi::Error plan(ForwardCall& c, ForwardParams* p, ForwardPlan* chosen) {
  DType dtype;
  if (ffi::Error error =
          read_problem(kOp, c.query, c.key, c.value, c.options, c.attributes, &dtype, p);
      error.failure())
    return error;
  if (!has_shape(*c.out, c.query.element_type(), {p->packs, p->q_rows, p->heads, p->dim_v}) ||
      !has_shape(*c.lse, ffi::F32, {p->packs, p->heads, p->q_rows}))
    return invalid_argument(kOp,
                            "out must be [B, S, Hq, Dv] like query and lse float32 [B, Hq, S]");
  if (static_cast<int64_t>(c.workspace->size_bytes()) < forward_workspace_bytes(*p))
    return invalid_argument(kOp, "the workspace is too small");
  p->out = c.out->untyped_data();
  p->lse = c.lse->typed_data<float>();
  p->lse_head_stride = p->q_rows;
  p->lse_row_stride = 1;
  if (c.lse->element_count() == 0) return ffi::Error::Success();
  return to_ffi_error(
      plan_attention_forward(dtype, *p, c.portable, static_cast<int64_t>(c.workspace->size_bytes()),
                             chosen),
      kOp);
}

ffi::Error initialize(ForwardCall c) {
  ForwardParams params = {};
  ForwardPlan chosen;
  return plan(c, &params, &chosen);
}

ffi::Error execute(cudaStream_t stream, ForwardCall c) {
  ForwardParams params = {};
  ForwardPlan chosen;
  if (ffi::Error error = plan(c, &params, &chosen); error.failure()) return error;
  if (c.lse->element_count() == 0) return ffi::Error::Success();
  return to_ffi_error(launch_attention_forward(chosen, params, c.workspace->untyped_data(), stream),
                      kOp);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    flash_attention_initialize, [](auto... call) { return initialize(ForwardCall{call...}); },
    ForwardCall::bind(ffi::Ffi::Bind<ffi::ExecutionStage::kInitialize>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    flash_attention_execute,
    [](cudaStream_t stream, auto... call) { return execute(stream, ForwardCall{call...}); },
    ForwardCall::bind(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>()),
    {ffi::Traits::kCmdBufferCompatible});

}  // namespace jax_baracuda
