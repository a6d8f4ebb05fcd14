// The FFI handlers of flash_decode and paged_decode, for module.cc to register.
#pragma once

#include "xla/ffi/api/c_api.h"

extern "C" {
XLA_FFI_Error* flash_decode_initialize(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* flash_decode_execute(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* paged_decode_initialize(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* paged_decode_execute(XLA_FFI_CallFrame* call_frame);
}
