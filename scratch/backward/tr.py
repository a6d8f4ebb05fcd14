import sys
b=sys.argv[1]+'/attention/hopper/backward/'
p=b+'traits.cuh'; s=open(p).read()
s=s.replace('namespace jax_baracuda {\n','''namespace jax_baracuda {
#ifdef TRACE
__device__ unsigned g_trace[3 * 16 * 128];
__device__ __forceinline__ void mark(int who, unsigned count, int point, bool lead) {
  unsigned long long a;
  asm volatile("cvta.global.u64 %0, _ZN12jax_baracuda7g_traceE;" : "=l"(a));
  a += (((who * 128) + (count & 127)) * 16 + point) * 4;
  const int on = lead && blockIdx.x == 5 && count < 3000u;
  asm volatile("{.reg .pred p; .reg .u32 c; setp.ne.s32 p, %1, 0; mov.u32 c, %%clock; @p st.global.u32 [%0], c;}" ::"l"(a), "r"(on) : "memory");
}
#else
__device__ __forceinline__ void mark(int, unsigned, int, bool) {}
#endif
''',1)
open(p,'w').write(s)
p=b+'consumer.cuh'; s=open(p).read()
def rep(a,bb,n=1):
    global s
    if s.count(a)<1: print('missing',a[:80]); return
    s=s.replace(a,bb,n)
M=lambda i:'mark(group, count, %d, threadIdx.x %% 128 == 0);'%i
rep('    wait_dout(tile, block);\n', '    '+M(0)+'\n    wait_dout(tile, block);\n    '+M(1)+'\n')
rep('      warpgroup_wait<0>();\n    }\n    hold(r.s);','      warpgroup_wait<0>();\n    }\n    hold(r.s);\n    '+M(2))
rep('if (Traits::kInterleaves && Traits::kLate) warpgroup_commit();','if (Traits::kInterleaves && Traits::kLate) warpgroup_commit();\n    '+M(3))
rep('    if (Traits::kBeginsWithDelta) begin_with_statistics','    hold4(r.weights);\n    '+M(4)+'\n    if (Traits::kBeginsWithDelta) begin_with_statistics')
rep('    if (kShifts && group == 0 && !due','    '+M(5)+'\n    if (kShifts && group == 0 && !due')
rep('    warpgroup_wait<1>();\n    hold(r.dp);','    '+M(9)+'\n    warpgroup_wait<1>();\n    hold(r.dp);\n    '+M(6))
rep('      differentiate_part<0, kHalf>(r, accumulate);\n','      differentiate_part<0, kHalf>(r, accumulate);\n      '+M(7)+'\n')
rep('      differentiate_part<kHalf, kRows>(r, accumulate);\n      warpgroup_commit();','      differentiate_part<kHalf, kRows>(r, accumulate);\n      warpgroup_commit();\n      '+M(8))
rep('    release(control.dout_empty[dout_stage(count)]);\n    return','    '+M(10)+'\n    release(control.dout_empty[dout_stage(count)]);\n    return')
rep('''      load_bias(tile, control.block[query_place.stage], 0);
      warpgroup_arrive();
      issue_scores(r.s);
      warpgroup_commit();
      publish_gradients();''','''      load_bias(tile, control.block[query_place.stage], 0);
      '''+M(11)+'''
      warpgroup_arrive();
      issue_scores(r.s);
      warpgroup_commit();
      '''+M(12)+'''
      publish_gradients();
      '''+M(13))
rep('  struct State {','''  static __device__ __forceinline__ void hold4(Operand& w) {
#ifdef TRACE
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) asm volatile("" : "+r"(w[i][0]), "+r"(w[i][1]), "+r"(w[i][2]), "+r"(w[i][3]));
#endif
  }
  struct State {''')
# turns
rep('''  static __device__ __forceinline__ void hold4''','''  __device__ __forceinline__ void turn_wait() const { if (Traits::kSumGroup && (TURN & 1)) named_barrier_sync(5 + group, 256); }
  __device__ __forceinline__ void turn_pass(int at) const { if (Traits::kSumGroup && TURN == at) named_barrier_arrive(6 - group, 256); }
  static __device__ __forceinline__ void hold4''')
rep('''    hold(r.s);
    mark(group, count, 2, threadIdx.x % 128 == 0);''','''    hold(r.s);
    turn_wait();
    mark(group, count, 2, threadIdx.x % 128 == 0);''')
rep('''    mark(group, count, 3,''','''    turn_pass(5);
    mark(group, count, 3,''')
rep('''    mark(group, count, 4,''','''    turn_pass(1);
    mark(group, count, 4,''')
rep('''    mark(group, count, 5,''','''    turn_pass(3);
    mark(group, count, 5,''')
rep('''  __device__ __forceinline__ void pass_rows() {
''','''  __device__ __forceinline__ void pass_rows() {
    turn_wait();
    turn_pass(1); turn_pass(3); turn_pass(5);
''')
rep('''Traits::kSplit == QuerySplit::kColumns && !Traits::kFeatures && !Traits::kSumGroup;''','''Traits::kSplit == QuerySplit::kColumns && !Traits::kFeatures && (!Traits::kSumGroup || TURN == 4);''')
s=s.replace('#pragma once\n','''#pragma once
#ifndef TURN
#define TURN 0
#endif
''',1)
rep('''    if (elect_lane()) control.left[4 * group + warp] = -1;
    __syncwarp();''','''    if (elect_lane()) control.left[4 * group + warp] = -1;
    __syncwarp();
    if (group == 1 && (TURN & 1) && Traits::kSumGroup) named_barrier_arrive(5, 256);''')
open(p,'w').write(s)
p=b+'sum_group.cuh'; s=open(p).read()
N=lambda i:'mark(2, count, %d, thread() == 0);'%i
rep('    wait(control.gradient_full[stage()], count / Traits::kGradientStages & 1);','    '+N(0)+'\n    wait(control.gradient_full[stage()], count / Traits::kGradientStages & 1);\n    '+N(1))
rep('      multiply_part(dq, held, part);','      multiply_part(dq, held, part);\n      mark(2, count, 3 + 2 * part, thread() == 0);')
rep('      add(dq, part);','      add(dq, part);\n      mark(2, count, 4 + 2 * part, thread() == 0);')
open(p,'w').write(s)
