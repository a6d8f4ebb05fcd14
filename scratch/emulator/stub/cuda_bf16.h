#pragma once
#include <cmath>
#include <cstring>
struct __nv_bfloat16 {
  unsigned short x;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float f) {
    unsigned u;
    memcpy(&u, &f, 4);
    if (f != f) {
      x = 0x7fff;
      return;
    }
    u += 0x7fff + ((u >> 16) & 1);
    x = u >> 16;
  }
};
inline float __bfloat162float(__nv_bfloat16 b) {
  unsigned u = unsigned(b.x) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
