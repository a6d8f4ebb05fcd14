// The FFI handlers of flash_attention's backward pass, for module.cc to register.
#pragma once

#include "xla/ffi/api/c_api.h"

extern "C" {
XLA_FFI_Error* flash_attention_backward_initialize(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* flash_attention_backward_execute(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* flash_attention_bias_grad_initialize(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* flash_attention_bias_grad_execute(XLA_FFI_CallFrame* call_frame);
}
