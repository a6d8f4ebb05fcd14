import sys
b=sys.argv[1]+'/attention/hopper/backward/'
o=set(sys.argv[2:])
s=open(b+'consumer.cuh').read()
def rep(a,c,n=1):
    global s
    assert s.count(a)==n,(s.count(a),a)
    s=s.replace(a,c)
# dS to shared memory before the second half of dK
rep('''    const int stage = gradient_stage(count);
    wait(control.gradient_empty[stage], gradient_parity(count) ^ 1);
    store_gradients(r.gradients);
    warpgroup_wait<Traits::kInterleaves ? 1 : 0>();  // dV
''','''    if constexpr (!kEarly) {
      wait(control.gradient_empty[gradient_stage(count)], gradient_parity(count) ^ 1);
      store_gradients(r.gradients);
    }
    warpgroup_wait<Traits::kInterleaves ? 1 : 0>();  // dV
''')
if 'st1' in o:  # after dK2 is asked for
    rep('''      differentiate_part<kHalf, kRows>(r, accumulate);
      warpgroup_commit();''','''      differentiate_part<kHalf, kRows>(r, accumulate);
      warpgroup_commit();
      if (kEarly) store_gradients(r.gradients);''')
else:
    rep('''    score_gradients<kBegin, kEnd>(r);
    warpgroup_arrive();''','''    score_gradients<kBegin, kEnd>(r);
    if (kEarly && kEnd == kRows) store_gradients(r.gradients);
    warpgroup_arrive();''')
rep('''    warpgroup_wait<1>();
    hold(r.dp);''','''    if (kEarly) wait_ahead(tile, flags);
    warpgroup_wait<1>();
    hold(r.dp);''')
rep('''  // To P, with dV under way, and dP.
''','''  // Waits for what comes after dS: room for it and the next queries.
  __device__ __forceinline__ void wait_ahead(const KeyTile& tile, int flags) const {
    if (!__any_sync(0xffffffffu, flags & kLastRows)) {
      auto next = query_place;
      next.next();
      wait(control.query_full[next.stage], next.parity);
      const RowBlock& block = control.block[next.stage];
      if (block.flags & kPaddedRows)
        this->template clear<Query>(shared + Traits::kQueryOffset + next.stage * Query::kBytes,
                                    tile.visible.q_len - block.first_row);
    }
    wait(control.gradient_empty[gradient_stage(count)], gradient_parity(count) ^ 1);
  }
  // To P, with dV under way, and dP.
''')
rep('''      query_place.next();
      wait_query(tile);
      load_bias(tile, control.block[query_place.stage], 0);
      warpgroup_arrive();
      issue_scores(r.s);
      warpgroup_commit();
      publish_gradients();''','''      query_place.next();
      if (!kEarly) wait_query(tile);
      load_bias(tile, control.block[query_place.stage], 0);
      warpgroup_arrive();
      issue_scores(r.s);
      warpgroup_commit();
      publish_gradients();''')
rep('''  using Option = BlockOption<Traits>;''','''  static constexpr bool kEarly = Traits::kSumGroup;
  using Option = BlockOption<Traits>;''')
if 'flags' in o:
    rep('''      weigh_rows(r, tile, block, due, accumulate);''','''      weigh_rows(r, tile, block, flags, due, accumulate);''')
    rep('''const RowBlock& block,
                                             bool due, bool accumulate) {''','''const RowBlock& block,
                                             int flags, bool due, bool accumulate) {''')
    rep('''    const int flags = block.flags;
    option.change(r.s);''','''    option.change(r.s);''')
open(b+'consumer.cuh','w').write(s)
if 'late' in o:
    s=open(b+'consumer.cuh').read()
    a=s.index('      const RowBlock& block = control.block[next.stage];\n      if (block.flags & kPaddedRows)'); e=s.index('    }\n    wait(control.gradient_empty[gradient_stage(count)], gradient_parity(count) ^ 1);\n  }\n  // To P')
    s=s[:a]+'''      padded = __any_sync(0xffffffffu, control.block[next.stage].flags & kPaddedRows);
'''+s[e:]
    rep('wait_ahead(const KeyTile& tile, int flags) const {','wait_ahead(int flags) {')
    rep('if (kEarly) wait_ahead(tile, flags);','if (kEarly) wait_ahead(flags);')
    rep('''  // Waits for what comes after dS:''','''  bool padded = false;
  // Waits for what comes after dS:''')
    rep('''      if (!kEarly) wait_query(tile);
''','''      if (!kEarly) wait_query(tile);
      if (kEarly && padded) {
        this->template clear<Query>(query_address(), tile.visible.q_len - control.block[query_place.stage].first_row);
      }
''')
    open(b+'consumer.cuh','w').write(s)
# first statistics loaded before the products are waited for
pre_l = int(next((x[3:] for x in o if x.startswith('lse')), 0))
pre_d = int(next((x[2:] for x in o if x.startswith('dl')), 0))
if pre_l or pre_d:
    s=open(b+'scores.cuh').read()
    rep('''// P of query rows''' if False else '''__device__ __forceinline__ float2 delta_of_rows(uint32_t delta, int n) {
  return Traits::kBeginsWithDelta ? make_float2(0.0f, 0.0f) : load_shared_float2(delta + n * 32);
}''','''__device__ __forceinline__ float2 delta_of_rows(uint32_t delta, int n) {
  return Traits::kBeginsWithDelta ? make_float2(0.0f, 0.0f) : load_shared_float2(delta + n * 32);
}
// Statistics of the first rows, loaded ahead of the others.
template <int kCount>
struct FirstRows {
  float2 of[kCount > 0 ? kCount : 1];
  __device__ __forceinline__ void load(uint32_t at) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(of[n].x), "=f"(of[n].y) : "r"(at + n * 32) : "memory");
  }
  __device__ __forceinline__ float2 get(uint32_t at, int n) const { return n < kCount ? of[n < kCount ? n : 0] : load_shared_float2(at + n * 32); }
};''')
    open(b+'scores.cuh','w').write(s)
    s=open(b+'consumer.cuh').read()
    rep('''  static constexpr bool kEarly = Traits::kSumGroup;
''','''  static constexpr bool kEarly = Traits::kSumGroup;
  static constexpr int kFirstLse = kEarly && Traits::kOption == 0 ? %d : 0, kFirstDelta = kEarly && Traits::kMultipliesPairs && !Traits::kFactors ? %d : 0;
  FirstRows<kFirstLse> first_lse;
  FirstRows<kFirstDelta> first_delta;
''' % (pre_l, pre_d))
    if pre_l:
        rep('''    } else {
      warpgroup_wait<0>();
    }
    hold(r.s);''','''    } else {
      first_lse.load(lse_address());
      warpgroup_wait<0>();
    }
    hold(r.s);''')
        rep('''    if constexpr (Traits::kOption == 0) {
      weigh<Traits, kBegin, kEnd>(r.s, scale, lse_address());''','''    if constexpr (kFirstLse > 0) {
      const uint32_t lse = lse_address();
#pragma unroll
      for (int n = kBegin / 8; n < kEnd / 8; ++n) {
        const float2 of_rows = first_lse.get(lse, n);
#pragma unroll
        for (int e = 0; e < 4; ++e) r.s[4 * n + e] = exp2_approx(fmaf(r.s[4 * n + e], scale, -(e % 2 ? of_rows.y : of_rows.x)));
      }
      pack_scores<Traits, kBegin, kEnd>(r.s, r.weights);
    } else if constexpr (Traits::kOption == 0) {
      weigh<Traits, kBegin, kEnd>(r.s, scale, lse_address());''')
    if pre_d:
        rep('''    warpgroup_wait<1>();
    hold(r.dp);''','''    first_delta.load(delta_address());
    warpgroup_wait<1>();
    hold(r.dp);''')
        rep('''    if constexpr (!Traits::kFactors) {
      differentiate<''','''    if constexpr (kFirstDelta > 0) {
      const uint32_t delta = delta_address();
#pragma unroll
      for (int n = kBegin / 8; n < kEnd / 8; ++n) {
        const float2 of_rows = first_delta.get(delta, n);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* at = r.dp + 4 * n + 2 * half;
          const int word = n % 2 * 2 + half;
          r.gradients[n / 2][word] = multiply_pairs(r.weights[n / 2][word], pack_pair<__nv_bfloat16>(at[0] - of_rows.x, at[1] - of_rows.y));
        }
      }
    } else if constexpr (!Traits::kFactors) {
      differentiate<''')
    open(b+'consumer.cuh','w').write(s)
