// Entries of the repository's objects as they were.
#include <new>
#include "attention/hopper/launch.h"
using namespace jax_baracuda;
#define E(name, ...) extern "C" void name(void* to) { new (to) HopperKernel(hopper_kernel_entry<DType::kBF16, __VA_ARGS__>()); }
E(b128, 128, 128, 128, 2, 1, 0, TileUse::kAny)
E(b64t, 64, 64, 64, 2, 1, 0, TileUse::kTwoCtas)
E(b64, 64, 64, 128, 3, 1, 0, TileUse::kAny)
E(b64j, 64, 64, 128, 3, 2, 0, TileUse::kAny)
E(b256, 256, 256, 80, 2, 1, 0, TileUse::kAny)
