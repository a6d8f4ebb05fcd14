// The FFI handlers of the appends and of apply_rope, for module.cc to register.
#pragma once

#include "xla/ffi/api/c_api.h"

extern "C" {
XLA_FFI_Error* append_initialize(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* append_execute(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* rope_initialize(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* rope_execute(XLA_FFI_CallFrame* call_frame);
}
