#pragma once
struct __half {
  unsigned short x;
  __half() = default;
  explicit __half(float f) {
    x = 0;
    (void)f;
  }
};
inline float __half2float(__half) { return 0; }
