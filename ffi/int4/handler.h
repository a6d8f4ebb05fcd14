// The FFI handler of int4_matmul, for module.cc to register.
#pragma once

#include "xla/ffi/api/c_api.h"

extern "C" {
XLA_FFI_Error* int4_matmul_initialize(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* int4_matmul_execute(XLA_FFI_CallFrame* call_frame);
}
