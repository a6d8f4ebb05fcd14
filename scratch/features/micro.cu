// Lanes a clock and SM of single instructions.
#include <cstdio>
#include <cstdint>
#define K(name, body) __global__ void name(uint32_t* out, uint32_t a, uint32_t b, long long* clocks) { \
  uint32_t x[8]; for (int i = 0; i < 8; ++i) x[i] = a * (threadIdx.x + i) | 1; \
  __syncthreads(); long long t = clock64(); \
  _Pragma("unroll 1") for (int r = 0; r < 256; ++r) { _Pragma("unroll") for (int u = 0; u < 4; ++u) _Pragma("unroll") for (int i = 0; i < 8; ++i) { body; } } \
  __syncthreads(); t = clock64() - t; uint32_t s = 0; for (int i = 0; i < 8; ++i) s ^= x[i]; out[blockIdx.x * blockDim.x + threadIdx.x] = s; if (threadIdx.x == 0) *clocks = t; }
K(wide, asm volatile("{.reg .u64 d; mul.wide.u32 d, %0, %1; mov.b64 {_, %0}, d;}" : "+r"(x[i]) : "r"(b)))
K(mulhi, asm volatile("mul.hi.u32 %0, %0, %1;" : "+r"(x[i]) : "r"(b)))
K(mullo, asm volatile("mul.lo.u32 %0, %0, %1;" : "+r"(x[i]) : "r"(b)))
K(lop3, asm volatile("lop3.b32 %0, %0, %1, %2, 0x96;" : "+r"(x[i]) : "r"(b), "r"(a)))
K(tanh_, asm volatile("{.reg .f32 f; mov.b32 f, %0; tanh.approx.f32 f, f; mov.b32 %0, f;}" : "+r"(x[i])))
K(ex2, asm volatile("{.reg .f32 f; mov.b32 f, %0; ex2.approx.ftz.f32 f, f; mov.b32 %0, f;}" : "+r"(x[i])))
K(ex2h, asm volatile("ex2.approx.ftz.bf16x2 %0, %0;" : "+r"(x[i])))
K(tanhh, asm volatile("tanh.approx.bf16x2 %0, %0;" : "+r"(x[i])))
K(fmnmx, asm volatile("{.reg .f32 f, g; mov.b32 f, %0; mov.b32 g, %1; max.f32 f, f, g; mov.b32 %0, f;}" : "+r"(x[i]) : "r"(b)))
K(ffma, asm volatile("{.reg .f32 f, g; mov.b32 f, %0; mov.b32 g, %1; fma.rn.f32 f, f, g, g; mov.b32 %0, f;}" : "+r"(x[i]) : "r"(b)))
K(prmt, asm volatile("prmt.b32 %0, %0, %1, 0x5410;" : "+r"(x[i]) : "r"(b)))
K(f2fp, asm volatile("{.reg .f32 f, g; mov.b32 f, %0; mov.b32 g, %1; cvt.rn.bf16x2.f32 %0, f, g;}" : "+r"(x[i]) : "r"(b)))
K(h2f, asm volatile("{.reg .b16 l, h; .reg .f32 f; mov.b32 {l, h}, %0; cvt.f32.f16 f, h; mov.b32 %0, f;}" : "+r"(x[i])))
K(hfma2, asm volatile("fma.rn.bf16x2 %0, %0, %1, %1;" : "+r"(x[i]) : "r"(b)))
K(hmax2, asm volatile("max.bf16x2 %0, %0, %1;" : "+r"(x[i]) : "r"(b)))
int main() {
  uint32_t* out; long long* c; cudaMalloc(&out, 132 * 1024 * 4); cudaMallocManaged(&c, 8);
#define R(name) { name<<<132, 512>>>(out, 3, 0x3f9d2511, c); name<<<132, 512>>>(out, 3, 0x3f9d2511, c); cudaError_t e = cudaDeviceSynchronize(); printf("%s %.1f%s ", #name, 512.0 * 256 * 32 / *c, e ? cudaGetErrorString(e) : ""); }
  printf("lanes a clock and SM: ");
  R(wide) R(mulhi) R(mullo) R(lop3) R(tanh_) R(ex2) R(ex2h) R(tanhh) R(fmnmx) R(ffma) R(prmt) R(f2fp) R(h2f) R(hfma2) R(hmax2)
  printf("\n");
}
