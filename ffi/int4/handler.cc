// FFI binding of int4_matmul: checks the buffers, fills Int4Params, launches.
#include "int4/handler.h"

#include <cstdint>
#include <utility>

#include "common/buffers.h"
#include "common/status.h"
#include "int4/launch.h"

namespace jax_baracuda {
namespace {

namespace ffi = xla::ffi;

constexpr char kOp[] = "int4_matmul";
constexpr int64_t kMaxChannels = int64_t{1} << 28;
constexpr int64_t kMaxRows = int64_t{1} << 30;

// Operands, results and attributes, in the order of the binding.
struct Int4Call {
  ffi::AnyBuffer x, packed, scales, zeros, bias;
  ffi::Result<ffi::AnyBuffer> out, workspace;
  int64_t group_size;

  template <class Binding>
  static auto bind(Binding&& binding) {
    using ffi::AnyBuffer;
    return std::forward<Binding>(binding)
        .template Arg<AnyBuffer>()  // x
        .template Arg<AnyBuffer>()  // packed
        .template Arg<AnyBuffer>()  // scales
        .template Arg<AnyBuffer>()  // zeros
        .template Arg<AnyBuffer>()  // bias
        .template Ret<AnyBuffer>()  // out
        .template Ret<AnyBuffer>()  // workspace
        .template Attr<int64_t>("group_size");
  }
};

ffi::Error read_shape(Int4Call& c, Int4Shape* shape) {
  const auto x = c.x.dimensions(), packed = c.packed.dimensions(), out = c.out->dimensions();
  if (ffi::Error error = read_dtype(kOp, c.x, &shape->dtype); error.failure()) return error;
  if (shape->dtype == DType::kF32) return invalid_argument(kOp, "x must be float16 or bfloat16");
  if (x.size() != 2 || out.size() != 2 || packed.size() != 3 ||
      !has_shape(c.packed, ffi::U8, {packed[0], packed[1], kTileBytes}))
    return invalid_argument(kOp, "x and out must be [M, K] and [M, OC], packed uint8 [S, T, 2048]");
  const int64_t strips = packed[0], tiles = packed[1], channels = out[1];
  if (strips * kStrip > kMaxChannels || tiles * kDepth > kMaxChannels || x[0] > kMaxRows)
    return invalid_argument(kOp, "too many rows or channels");
  if (x[1] % 8 != 0 || x[1] > tiles * kDepth || channels > strips * kStrip ||
      channels <= (strips - 1) * kStrip || !has_shape(*c.out, c.x.element_type(), {x[0], channels}))
    return invalid_argument(kOp, "x, packed and out do not fit each other");
  const int64_t group = c.group_size;
  if (group != 32 && (group < 0 || group % 64 != 0 || (group == 0 && tiles > 0)))
    return invalid_argument(kOp, "group_size must be 32 or a multiple of 64");
  const int64_t groups = tiles == 0 ? 0 : (tiles * kDepth + group - 1) / group;
  if (!has_shape(c.scales, c.x.element_type(), {groups, strips * kStrip}) ||
      !has_shape(c.zeros, ffi::U8, {groups, strips * kStrip}))
    return invalid_argument(kOp, "scales and zeros must be [groups, 64 S], like x and uint8");
  if (c.bias.element_count() != 0 && !has_shape(c.bias, c.x.element_type(), {channels}))
    return invalid_argument(kOp, "bias must be [OC] or empty, like x");
  shape->rows = x[0];
  shape->columns = static_cast<int>(x[1]);
  shape->channels = static_cast<int>(channels);
  shape->strips = static_cast<int>(strips);
  shape->depth_tiles = static_cast<int>(tiles);
  shape->group_size = static_cast<int>(group);
  return ffi::Error::Success();
}

ffi::Error make_plan(Int4Call& c, Int4Shape* shape, Int4Plan* plan) {
  if (ffi::Error error = read_shape(c, shape); error.failure()) return error;
  if (shape->rows == 0 || shape->channels == 0) return ffi::Error::Success();
  return to_ffi_error(plan_int4(*shape, static_cast<int64_t>(c.workspace->element_count()), plan),
                      kOp);
}

bool is_aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

ffi::Error initialize_int4(Int4Call c) {
  Int4Shape shape;
  Int4Plan plan;
  return make_plan(c, &shape, &plan);
}

ffi::Error execute_int4(cudaStream_t stream, Int4Call c) {
  Int4Shape shape;
  Int4Plan plan;
  if (ffi::Error error = make_plan(c, &shape, &plan); error.failure()) return error;
  if (shape.rows == 0 || shape.channels == 0) return ffi::Error::Success();
  Int4Params p = {};
  p.x = c.x.untyped_data();
  p.packed = c.packed.typed_data<uint8_t>();
  p.scales = c.scales.untyped_data();
  p.zeros = c.zeros.typed_data<uint8_t>();
  p.bias = c.bias.element_count() == 0 ? nullptr : c.bias.untyped_data();
  p.out = c.out->untyped_data();
  p.partials = static_cast<float*>(c.workspace->untyped_data());
  for (const void* address : {p.x, static_cast<const void*>(p.packed), p.scales,
                              static_cast<const void*>(p.zeros), static_cast<const void*>(p.out)})
    if (!is_aligned(address))
      return invalid_argument(kOp, "every array must start at a multiple of 16 bytes");
  return to_ffi_error(launch_int4(shape, plan, p, stream), kOp);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    int4_matmul_initialize, [](auto... call) { return initialize_int4(Int4Call{call...}); },
    Int4Call::bind(ffi::Ffi::Bind<ffi::ExecutionStage::kInitialize>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    int4_matmul_execute,
    [](cudaStream_t stream, auto... call) { return execute_int4(stream, Int4Call{call...}); },
    Int4Call::bind(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>()),
    {ffi::Traits::kCmdBufferCompatible});

}  // namespace jax_baracuda
