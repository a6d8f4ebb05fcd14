import sys
b=sys.argv[1]+'/attention/hopper/backward/'
s=open(b+'consumer.cuh').read()
def rep(a,c,n=1):
    global s
    assert s.count(a)==n,(s.count(a),a)
    s=s.replace(a,c)
# differentiate_rows: with the sum group, stops when dS is there
rep('''      differentiate_part<0, kHalf>(r, accumulate);
      differentiate_part<kHalf, kRows>(r, accumulate);
      warpgroup_commit();
    } else''','''      differentiate_part<0, kHalf>(r, accumulate);
      if constexpr (kScoresEarly) {
        warpgroup_commit();
        score_gradients<kHalf, kRows>(r);
        return __any_sync(0xffffffffu, flags & kLastRows);
      }
      differentiate_part<kHalf, kRows>(r, accumulate);
      warpgroup_commit();
    } else''')
rep('''  // From dP to dS of some of the rows, and dK with it.''','''  // dK of the second half of the rows, whose dS are there, and what comes after dS. `pending`: groups of products asked for after dV.
  template <int kPending>
  __device__ __forceinline__ void finish_rows(State& r, bool accumulate, uint32_t query) {
    warpgroup_arrive();
    multiply_weights<T, Query, kRows, kHalf, kRows>(r.dk, r.gradients, query, accumulate);
    warpgroup_commit();
    const int stage = gradient_stage(count);
    wait(control.gradient_empty[stage], gradient_parity(count) ^ 1);
    store_gradients(r.gradients);
    warpgroup_wait<kPending>();  // dV
    release(control.dout_empty[dout_stage(count)]);
  }
  // From dP to dS of some of the rows, and dK with it.''')
rep('''  using Option = BlockOption<Traits>;''','''  static constexpr bool kScoresEarly = Traits::kSumGroup;
  using Option = BlockOption<Traits>;''')
rep('''    } else {
      warpgroup_wait<0>();
    }
    hold(r.s);
    // dK of the block before is there, too.
    if ((!Traits::kInterleaves || Traits::kSumGroup) && accumulate)
      release(control.query_empty[query_stage_before()]);''','''    } else if (kScoresEarly) {
      warpgroup_wait<1>();
    } else {
      warpgroup_wait<0>();
    }
    hold(r.s);
    // dK of the block before is there, too.
    if ((!Traits::kInterleaves || Traits::kSumGroup) && !kScoresEarly && accumulate)
      release(control.query_empty[query_stage_before()]);''')
rep('''    warpgroup_wait<1>();
    hold(r.dp);''','''    warpgroup_wait<1>();
    if (kScoresEarly && accumulate) release(control.query_empty[query_stage_before()]);
    hold(r.dp);''')
rep('''    issue_scores(r.s);
    warpgroup_commit();
    wait(control.value_full''','''    issue_scores(r.s);
    warpgroup_commit();
    if (kScoresEarly) warpgroup_commit();  // in the place of dK's
    wait(control.value_full''')
rep('''      issue_key_gradient(r, Traits::kPasses ? accumulate : due);
      query_place.next();
      wait_query(tile);''','''      issue_key_gradient(r, Traits::kPasses ? accumulate : due);
      const uint32_t query = query_address();
      query_place.next();
      wait_query(tile);''')
rep('''      issue_scores(r.s);
      warpgroup_commit();
      publish_gradients();''','''      issue_scores(r.s);
      warpgroup_commit();
      if constexpr (kScoresEarly) finish_rows<3>(r, Traits::kPasses ? accumulate : due, query);
      publish_gradients();''')
rep('''    release(control.value_empty);
    if constexpr (Traits::kSumGroup)
      return''','''    if constexpr (kScoresEarly)
      finish_rows<2>(r, Traits::kPasses ? accumulate : due, query_address());
    release(control.value_empty);
    if constexpr (Traits::kSumGroup)
      return''')
open(b+'consumer.cuh','w').write(s)
