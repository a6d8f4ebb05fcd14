// Division by a number that the host knows.
#pragma once

#include <cstdint>

namespace jax_baracuda {

// Division of n < 2^31: a multiplication on the device (see divide() in device/divide.cuh).
struct Divisor {
  uint32_t divisor = 1, magic = 0x80000000u, shift = 0;

  Divisor() = default;
  explicit Divisor(uint32_t d) : divisor(d) {
    uint32_t log = 0;
    while ((uint64_t{1} << log) < d) ++log;
    magic = static_cast<uint32_t>(((uint64_t{1} << (31 + log)) + d - 1) / d);
    shift = log;
  }
};

}  // namespace jax_baracuda
