// FFI binding of paged_prefill: checks the buffers, fills ForwardParams, launches.
#include <utility>

#include "attention/forward/handler.h"
#include "attention/forward/launch.h"
#include "attention/operands.h"
#include "common/status.h"

namespace jax_baracuda {
namespace {

namespace ffi = xla::ffi;

constexpr char kOp[] = "paged_prefill";

// Operands, results and attributes, in the order of the binding.
struct PrefillCall {
  ffi::AnyBuffer query, qo_indptr, k_pages, v_pages;
  PageOperands pages;
  ffi::AnyBuffer sinks, alibi_slopes;
  ffi::Result<ffi::AnyBuffer> out, lse, workspace;
  PagedAttributes attributes;
  bool portable;  // whether to leave out the kernels of one architecture

  template <class Binding>
  static auto bind(Binding&& binding) {
    return PagedAttributes::bind(
               PageOperands::bind(std::forward<Binding>(binding)
                                      .template Arg<ffi::AnyBuffer>()   // query
                                      .template Arg<ffi::AnyBuffer>()   // qo_indptr
                                      .template Arg<ffi::AnyBuffer>()   // k_pages
                                      .template Arg<ffi::AnyBuffer>())  // v_pages
                   .template Arg<ffi::AnyBuffer>()                      // sinks
                   .template Arg<ffi::AnyBuffer>()                      // alibi_slopes
                   .template Ret<ffi::AnyBuffer>()                      // out
                   .template Ret<ffi::AnyBuffer>()                      // lse
                   .template Ret<ffi::AnyBuffer>())                     // workspace
        .template Attr<bool>("portable");
  }
};

// The parameters and the kernel; none where there is nothing to compute.
ffi::Error plan(PrefillCall& c, ForwardParams* p, ForwardPlan* chosen) {
  DType dtype;
  if (ffi::Error error =
          read_paged_problem(kOp, c.query, c.qo_indptr, c.k_pages, c.v_pages, c.pages, c.sinks,
                             c.alibi_slopes, c.attributes, &dtype, p);
      error.failure())
    return error;
  if (!has_shape(*c.out, c.query.element_type(), {p->q_rows, p->heads, p->dim}) ||
      !has_shape(*c.lse, ffi::F32, {p->q_rows, p->heads}))
    return invalid_argument(kOp, "out must be like query and lse float32 [T, Hq]");
  if (static_cast<int64_t>(c.workspace->size_bytes()) < forward_workspace_bytes(*p))
    return invalid_argument(kOp, "the workspace is too small");
  p->out = c.out->untyped_data();
  p->lse = c.lse->typed_data<float>();
  p->lse_head_stride = 1;
  p->lse_row_stride = p->heads;
  if (c.lse->element_count() == 0) return ffi::Error::Success();
  return to_ffi_error(
      plan_attention_forward(dtype, *p, c.portable, static_cast<int64_t>(c.workspace->size_bytes()),
                             chosen),
      kOp);
}

ffi::Error initialize(PrefillCall c) {
  ForwardParams params = {};
  ForwardPlan chosen;
  return plan(c, &params, &chosen);
}

ffi::Error execute(cudaStream_t stream, PrefillCall c) {
  ForwardParams params = {};
  ForwardPlan chosen;
  if (ffi::Error error = plan(c, &params, &chosen); error.failure()) return error;
  if (c.lse->element_count() == 0) return ffi::Error::Success();
  return to_ffi_error(launch_attention_forward(chosen, params, c.workspace->untyped_data(), stream),
                      kOp);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    paged_prefill_initialize, [](auto... call) { return initialize(PrefillCall{call...}); },
    PrefillCall::bind(ffi::Ffi::Bind<ffi::ExecutionStage::kInitialize>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    paged_prefill_execute,
    [](cudaStream_t stream, auto... call) { return execute(stream, PrefillCall{call...}); },
    PrefillCall::bind(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>()),
    {ffi::Traits::kCmdBufferCompatible});

}  // namespace jax_baracuda
