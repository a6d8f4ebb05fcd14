import sys
b=sys.argv[1]+'/attention/hopper/backward/'
s=open(b+'consumer.cuh').read()
def rep(a,c,n=1):
    global s
    assert s.count(a)==n,(s.count(a),a)
    s=s.replace(a,c)
rep('''    const int stage = gradient_stage(count);
    wait(control.gradient_empty[stage], gradient_parity(count) ^ 1);
    store_gradients(r.gradients);
    warpgroup_wait<Traits::kInterleaves ? 1 : 0>();  // dV
''','''    if (!kScoresFirst) leave_gradients(r);
    warpgroup_wait<Traits::kInterleaves ? 1 : 0>();  // dV
''')
rep('''  // To P, with dV under way, and dP.
''','''  // dS to shared memory.
  __device__ __forceinline__ void leave_gradients(const State& r) const {
    wait(control.gradient_empty[gradient_stage(count)], gradient_parity(count) ^ 1);
    store_gradients(r.gradients);
  }
  // To P, with dV under way, and dP.
''')
rep('''      issue_scores(r.s);
      warpgroup_commit();
      publish_gradients();''','''      issue_scores(r.s);
      warpgroup_commit();
      if (kScoresFirst) leave_gradients(r);
      publish_gradients();''')
rep('''    query_place.next();
    publish_gradients();
    hold(r.dv);
    warpgroup_wait<0>();
    hold(r.dk);''','''    query_place.next();
    if (kScoresFirst) leave_gradients(r);
    publish_gradients();
    hold(r.dv);
    warpgroup_wait<0>();
    hold(r.dk);''')
rep('''  using Option = BlockOption<Traits>;''','''  static constexpr bool kScoresFirst = Traits::kSumGroup;
  using Option = BlockOption<Traits>;''')
if 'flags' in sys.argv:
    rep('''      weigh_rows(r, tile, block, due, accumulate);''','''      weigh_rows(r, tile, block, flags, due, accumulate);''')
    rep('''const RowBlock& block,
                                             bool due, bool accumulate) {''','''const RowBlock& block,
                                             int flags, bool due, bool accumulate) {''')
    rep('''    const int flags = block.flags;
    option.change(r.s);''','''    option.change(r.s);''')
open(b+'consumer.cuh','w').write(s)
