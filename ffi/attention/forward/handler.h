// The FFI handlers of flash_attention's forward pass and of paged_prefill, for module.cc to register.
#pragma once

#include "xla/ffi/api/c_api.h"

extern "C" {
XLA_FFI_Error* flash_attention_initialize(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* flash_attention_execute(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* paged_prefill_initialize(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* paged_prefill_execute(XLA_FFI_CallFrame* call_frame);
}
