// Global and shared memory access: 16-byte loads, cp.async, programmatic dependent launch.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace jax_baracuda {

// 16 bytes of data that stream through once: through the read-only path, not kept in L1, fetched from
// memory by whole 128-byte lines.
__device__ __forceinline__ uint4 load_global_16(const void* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.b32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

// The same, or zeros where `valid` is false: the address is then never touched.
__device__ __forceinline__ uint4 load_global_16_if(const void* address, bool valid) {
  uint4 v;
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %5, 0;\n"
      " mov.b32 %0, 0;\n mov.b32 %1, 0;\n mov.b32 %2, 0;\n mov.b32 %3, 0;\n"
      " @p ld.global.nc.L1::no_allocate.L2::128B.v4.b32 {%0, %1, %2, %3}, [%4];\n}\n"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(address), "r"(static_cast<int>(valid)));
  return v;
}

// Brings the line of an address to L2.
__device__ __forceinline__ void prefetch_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(address));
}

// Four elements at once.
template <class T>
__device__ __forceinline__ void store_vector(T* address, const T (&elements)[4]) {
  using Vector = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
  static_assert(sizeof(Vector) == sizeof(elements));
  Vector packed;
  memcpy(&packed, elements, sizeof(packed));
  *reinterpret_cast<Vector*>(address) = packed;
}

// *address += x. What one thread adds to a place is added in its order.
__device__ __forceinline__ void add_global_float(float* address, float x) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;\n" ::"l"(address), "f"(x) : "memory");
}

// Adds to four neighbouring floats in global memory, 16 bytes aligned.
__device__ __forceinline__ void add_global_float4(float* address, float x, float y, float z,
                                                  float w) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(address), "f"(x), "f"(y),
               "f"(z), "f"(w)
               : "memory");
#else
  atomicAdd(address, x);
  atomicAdd(address + 1, y);
  atomicAdd(address + 2, z);
  atomicAdd(address + 3, w);
#endif
}

// Starts to copy 4 bytes to shared memory, or zeros where `valid` is false.
__device__ __forceinline__ void copy_async_4(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared), "l"(global),
               "r"(valid ? 4 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_async_4(void* shared, const void* global, bool valid) {
  copy_async_4(static_cast<uint32_t>(__cvta_generic_to_shared(shared)), global, valid);
}

// Starts to copy 16 bytes to a shared address past L1, or zeros where `valid` is false.
__device__ __forceinline__ void copy_async_16(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most `kPending` of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void store_shared_16(uint32_t shared, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(shared), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}

__device__ __forceinline__ uint4 load_shared_16(uint32_t shared) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(shared)
               : "memory");
  return v;
}

__device__ __forceinline__ uint32_t load_shared_4(uint32_t shared) {
  uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1];\n" : "=r"(v) : "r"(shared) : "memory");
  return v;
}
// Two bytes, in the low half.
__device__ __forceinline__ uint32_t load_shared_2(uint32_t shared) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];\n" : "=h"(v) : "r"(shared) : "memory");
  return v;
}

__device__ __forceinline__ void store_shared_4(uint32_t shared, uint32_t v) {
  asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(shared), "r"(v) : "memory");
}
__device__ __forceinline__ void store_shared_float2(uint32_t shared, float2 v) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};\n" ::"r"(shared), "f"(v.x), "f"(v.y) : "memory");
}
__device__ __forceinline__ float2 load_shared_float2(uint32_t shared) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];\n"
               : "=f"(v.x), "=f"(v.y)
               : "r"(shared)
               : "memory");
  return v;
}
__device__ __forceinline__ float load_shared_float(uint32_t shared) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];\n" : "=f"(v) : "r"(shared) : "memory");
  return v;
}

__device__ __forceinline__ void copy_async_wait_all() {
  asm volatile("cp.async.wait_all;\n" ::: "memory");
}

// Lets the next kernel of the stream be scheduled before this one has ended (sm_90 and newer).
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// Waits until the kernel that this one depends on has ended and its writes are visible.
__device__ __forceinline__ void wait_for_dependency() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

}  // namespace jax_baracuda
