p='t1/ffi/int4/wide.cuh'
s=open(p).read()
a=s.index("    for (int i = 0; i < kChunk; ++i)\n      WarpgroupMma<T, kN>::registers_transposed("); b=s.index("    warpgroup_commit();",a)
s=s[:a]+'''    for (int i = 0; i < kChunk; ++i)
#pragma unroll
      for (int part = 0; part < kN / kWidth; ++part)
        WarpgroupMma<T, kWidth>::registers_transposed(
            reinterpret_cast<float (&)[kWidth / 2]>(sums[part * kWidth / 2]), a[i],
            advance(at, stage * Rows::kBytes + Rows::row_offset(part * kWidth) +
                            Rows::column_offset(16 * (first + i))),
            kStageSums && first + i == 0 ? 0 : 1);
'''+s[b:]
s=s.replace('''    for (int part = 0; part < 2; ++part)
      WarpgroupMma<__nv_bfloat16, kN>::shared(
          products, Place::descriptor(from + strip * (kStrip * 32)),
          Place::descriptor(sums_of_x + part * Traits::kSumBytes), kStageSums && part == 0 ? 0 : 1);
''','''    for (int part = 0; part < 2; ++part)
#pragma unroll
      for (int rows = 0; rows < kN; rows += kWidth)
        WarpgroupMma<__nv_bfloat16, kWidth>::shared(
            reinterpret_cast<float (&)[kWidth / 2]>(products[rows / 2]),
            Place::descriptor(from + strip * (kStrip * 32)),
            Place::descriptor(sums_of_x + part * Traits::kSumBytes + rows * 32),
            kStageSums && part == 0 ? 0 : 1);
''')
s=s.replace('''  using Sums = float[kN / 2];
  // Rounds''','''  using Sums = float[kN / 2];
  static constexpr int kWidth = kN == 64 ? 32 : kN;
  // Rounds''')
open(p,'w').write(s)
p='t1/ffi/int4/wide.cuh'
s=open(p).read()
s=s.replace('    multiplier.finish(sums);','''    float copy[Traits::kN / 2];
    for (int i = 0; i < Traits::kN / 2; ++i) asm volatile("mov.b32 %0, %1;" : "=f"(copy[i]) : "f"(sums[i]));
    WideMultiplier<Traits>(params, base).finish(copy);''')
s=s.replace('''  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;  // of the warpgroup
  const int strip = shared_by_lanes(threadIdx.x / 128);''','''  const uint32_t thread = read_thread2();
  const int lane = thread % 32, warp = thread / 32 % 4;  // of the warpgroup
  const int strip = shared_by_lanes(thread / 128);''')
s=s.replace('''// Where everything is''','''__device__ __forceinline__ uint32_t read_thread2() {
  uint32_t thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}
// Where everything is''')
open(p,'w').write(s)
p='t1/ffi/int4/wide.cuh'
s=open(p).read()
s=s.replace('static_cast<int>(threadIdx.x),','static_cast<int>(read_thread2()),')
s=s.replace('''    return;
  }
  if (warp > kLoading)''','''    return;
  }
  if (warp > kLoading)''')
open(p,'w').write(s)
p='t1/ffi/int4/wide.cuh'
s=open(p).read()
s=s.replace('WideCorrector<Traits>(params, base).run();',';')
open(p,'w').write(s)
