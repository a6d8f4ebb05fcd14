// How the CTAs that share a row find out which of them is the last, in memory that holds anything at first.
//
// A ticket is a counter that starts at kTicket, 64 bits that no data holds. Whoever will count itself has
// looked at the ticket before, early enough that nobody waits for it, and writes kTicket over anything
// that was not a count. The last one leaves kTicket behind. So nothing must be cleared before the kernel
// starts, and a captured graph replays as it is.
#pragma once

#include <cstdint>

#include "decode/config.h"
#include "device/memory.cuh"

namespace jax_baracuda {

using Ticket = unsigned long long;

// As bfloat16, float16 or float32 a NaN that no arithmetic gives; as an integer far from any size.
inline constexpr Ticket kTicket = 0xffa5c96e7fd3b000ull;

// Counts the calling CTA after making its memory visible; true for the last one of `count`, which then
// sees the memory of the others. `seen`: what the ticket was at any time since the kernel began. Whoever
// fails to replace that was forestalled by one who has.
__device__ __forceinline__ bool take_ticket(Ticket* ticket, Ticket seen, int count) {
  if (seen - kTicket > kMaxParts) atomicCAS(ticket, seen, kTicket);
  fence_device();
  if (atomicAdd(ticket, Ticket{1}) != kTicket + (count - 1)) return false;
  fence_device();
  *ticket = kTicket;
  return true;
}

}  // namespace jax_baracuda
