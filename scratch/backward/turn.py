b='$HERE/ffi_tr/attention/hopper/backward/'
p=b+'consumer.cuh'; s=open(p).read()
def rep(a,bb,n=1):
    global s
    assert s.count(a)>=1,a
    s=s.replace(a,bb,n)
rep('''  static __device__ __forceinline__ void hold4''','''  __device__ __forceinline__ void turn_wait() const { if (Traits::kSumGroup && (TURN == 1 || TURN == 3 || TURN == 5)) named_barrier_sync(5 + group, 256); }
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
    if (group == 1 && (TURN == 1 || TURN == 3 || TURN == 5) && Traits::kSumGroup) named_barrier_arrive(5, 256);''')
open(p,'w').write(s)
