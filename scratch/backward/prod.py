b='$REPO/ffi/attention/hopper/backward/'
def edit(f, *pairs):
    s=open(b+f).read()
    for a,c in pairs:
        assert s.count(a)==1,(f,s.count(a),a)
        s=s.replace(a,c)
    open(b+f,'w').write(s)
edit('traits.cuh',('''  // Whether CTAs may share a tile by its query rows''','''  // Whether consumers wait ahead, with dP under way, for what comes after dS, and leave dS in shared memory before they ask for
  // the last of dK: S of the next row block is then asked for right behind it. ALiBi and dropout take the registers for that.
  static constexpr bool kWaitsAhead = kSumGroup && kOption != kAlibi && kOption != kDropout;
  // So many times 8 rows, the first ones, have their LSE and delta loaded before what they are for is waited for.
  static constexpr int kLseAhead =
      !kWaitsAhead || kOption != 0 ? 0 : std::is_same_v<T, __nv_bfloat16> ? 4 : 2;
  static constexpr int kDeltaAhead = kWaitsAhead && kMultipliesPairs && !kFactors ? 4 : 0;
  // Whether CTAs may share a tile by its query rows'''))
edit('scores.cuh',('''// Scores to weights, in place. `scale`: to base 2. `lse`: shared address of that of the lane's first row.
template <class Traits, int kBegin = 0, int kEnd = Traits::kRows>
__device__ __forceinline__ void weigh(KeyScores<Traits>& s, float scale, uint32_t lse) {
#pragma unroll
  for (int n = kBegin / 8; n < kEnd / 8; ++n) {
    const float2 of_rows = load_shared_float2(lse + n * 32);
''','''// Statistics of a lane's query rows of 8n, 8n + 1 ..., which lie in shared memory from an address on.
__device__ __forceinline__ float2 statistics_of_rows(uint32_t at, int n) {
  return load_shared_float2(at + n * 32);
}
// The same where those of the first rows have been loaded ahead: n < kCount.
template <int kCount>
struct RowsAhead {
  uint32_t at;
  float2 first[kCount];

  __device__ __forceinline__ void load(uint32_t from) {
    at = from;
#pragma unroll
    for (int n = 0; n < kCount; ++n)
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];\\n"
                   : "=f"(first[n].x), "=f"(first[n].y)
                   : "r"(from + n * 32)
                   : "memory");
  }
};
template <>
struct RowsAhead<0> {};
template <int kCount>
__device__ __forceinline__ float2 statistics_of_rows(const RowsAhead<kCount>& rows, int n) {
  return n < kCount ? rows.first[n] : statistics_of_rows(rows.at, n);
}

// Scores to weights, in place. `scale`: to base 2. `lse`: of the lane's rows.
template <class Traits, int kBegin = 0, int kEnd = Traits::kRows, class Rows>
__device__ __forceinline__ void weigh(KeyScores<Traits>& s, float scale, const Rows& lse) {
#pragma unroll
  for (int n = kBegin / 8; n < kEnd / 8; ++n) {
    const float2 of_rows = statistics_of_rows(lse, n);
'''),('''template <class Traits>
__device__ __forceinline__ float2 delta_of_rows(uint32_t delta, int n) {
  return Traits::kBeginsWithDelta ? make_float2(0.0f, 0.0f) : load_shared_float2(delta + n * 32);
}''','''template <class Traits, class Rows>
__device__ __forceinline__ float2 delta_of_rows(const Rows& delta, int n) {
  return Traits::kBeginsWithDelta ? make_float2(0.0f, 0.0f) : statistics_of_rows(delta, n);
}'''),('''template <class Traits>
__device__ __forceinline__ void differentiate_pairs(int i, const uint32_t (&rounded)[4],
                                                    const float* dp, uint32_t delta,
''','''template <class Traits, class Rows>
__device__ __forceinline__ void differentiate_pairs(int i, const uint32_t (&rounded)[4],
                                                    const float* dp, const Rows& delta,
'''),('''template <class Traits, int kBegin = 0, int kEnd = Traits::kRows>
__device__ __forceinline__ void differentiate(const KeyScores<Traits>& weights,
                                              const KeyOperand<Traits>& rounded,
                                              KeyScores<Traits>& dp, uint32_t delta,
''','''template <class Traits, int kBegin = 0, int kEnd = Traits::kRows, class Rows>
__device__ __forceinline__ void differentiate(const KeyScores<Traits>& weights,
                                              const KeyOperand<Traits>& rounded,
                                              KeyScores<Traits>& dp, const Rows& delta,
'''),('''template <class Traits>
__device__ __forceinline__ void differentiate(int i, const uint32_t (&rounded)[4], float* dp,
                                              uint32_t delta) {''','''template <class Traits, class Rows>
__device__ __forceinline__ void differentiate(int i, const uint32_t (&rounded)[4], float* dp,
                                              const Rows& delta) {'''))
edit('consumer.cuh',('''    uint32_t values[4];  // see kHoldsValues
  };
''','''    uint32_t values[4];  // see kHoldsValues
    RowsAhead<Traits::kLseAhead> lse;
    RowsAhead<Traits::kDeltaAhead> delta;
    bool padded;  // see wait_ahead()
  };
'''),('''      weigh_rows(r, tile, block, due, accumulate);
    }
''','''      weigh_rows(r, tile, block, flags, due, accumulate);
    }
'''),('''    const int stage = gradient_stage(count);
    wait(control.gradient_empty[stage], gradient_parity(count) ^ 1);
    store_gradients(r.gradients);
    warpgroup_wait<Traits::kInterleaves ? 1 : 0>();  // dV
''','''    if (!kWaitsAhead) {
      wait_gradient_empty();
      store_gradients(r.gradients);
    }
    warpgroup_wait<Traits::kInterleaves ? 1 : 0>();  // dV
'''),('''  // To P, with dV under way, and dP.
  __device__ __forceinline__ void weigh_rows(State& r, const KeyTile& tile, const RowBlock& block,
                                             bool due, bool accumulate) {
''','''  // Waits for room for the row block's dS.
  __device__ __forceinline__ void wait_gradient_empty() const {
    wait(control.gradient_empty[gradient_stage(count)], gradient_parity(count) ^ 1);
  }
  // Waits for that and for the queries of the next row block, if there is one; whether some of them are to be cleared.
  __device__ __forceinline__ bool wait_ahead(int flags) const {
    bool padded = false;
    if (!__any_sync(0xffffffffu, flags & kLastRows)) {
      auto next = query_place;
      next.next();
      wait(control.query_full[next.stage], next.parity);
      padded = __any_sync(0xffffffffu, control.block[next.stage].flags & kPaddedRows);
    }
    wait_gradient_empty();
    return padded;
  }
  // Waits for the queries of the row block at hand where that has not been done ahead.
  __device__ __forceinline__ void wait_next_query(const State& r, const KeyTile& tile) const {
    if (!kWaitsAhead)
      wait_query(tile);
    else if (r.padded)
      this->clear_query(tile);
  }

  // To P, with dV under way, and dP.
  __device__ __forceinline__ void weigh_rows(State& r, const KeyTile& tile, const RowBlock& block,
                                             int flags, bool due, bool accumulate) {
'''),('''    } else {
      warpgroup_wait<0>();
    }
    hold(r.s);''','''    } else {
      if constexpr (Traits::kLseAhead > 0) r.lse.load(lse_address());
      warpgroup_wait<0>();
    }
    hold(r.s);'''),('''    const int flags = block.flags;
    option.change(r.s);''','''    if (!kWaitsAhead) flags = block.flags;  // anew: no register for them
    option.change(r.s);'''),('''    if (!Traits::kSumGroup) send_query_gradient(tile);
    warpgroup_wait<1>();
    hold(r.dp);''','''    if (!Traits::kSumGroup) send_query_gradient(tile);
    if constexpr (kWaitsAhead) r.padded = wait_ahead(flags);
    if constexpr (Traits::kDeltaAhead > 0) r.delta.load(delta_address());
    warpgroup_wait<1>();
    hold(r.dp);'''),('''    if constexpr (Traits::kOption == 0) {
      weigh<Traits, kBegin, kEnd>(r.s, scale, lse_address());''','''    if constexpr (Traits::kOption == 0) {
      if constexpr (Traits::kLseAhead > 0)
        weigh<Traits, kBegin, kEnd>(r.s, scale, r.lse);
      else
        weigh<Traits, kBegin, kEnd>(r.s, scale, lse_address());'''),('''    if constexpr (!Traits::kFactors) {
      differentiate<''','''    if constexpr (Traits::kDeltaAhead > 0) {
      differentiate<Traits, kBegin, kEnd>(r.s, r.weights, r.dp, r.delta, r.gradients);
    } else if constexpr (!Traits::kFactors) {
      differentiate<'''),('''    score_gradients<kBegin, kEnd>(r);
    warpgroup_arrive();''','''    score_gradients<kBegin, kEnd>(r);
    if (kWaitsAhead && kEnd == kRows) store_gradients(r.gradients);
    warpgroup_arrive();'''),('''      query_place.next();
      wait_query(tile);
      load_bias(tile''','''      query_place.next();
      wait_next_query(r, tile);
      load_bias(tile'''),('''  using Option = BlockOption<Traits>;
''','''  static constexpr bool kWaitsAhead = Traits::kWaitsAhead;

  using Option = BlockOption<Traits>;
'''))
edit('consumer_base.cuh',('''    const RowBlock& block = control.block[query_place.stage];
    if (block.flags & kPaddedRows)
      clear<Query>(query_address(), tile.visible.q_len - block.first_row);
  }''','''    if (control.block[query_place.stage].flags & kPaddedRows) clear_query(tile);
  }
  __device__ __forceinline__ void clear_query(const KeyTile& tile) const {
    clear<Query>(query_address(),
                 tile.visible.q_len - control.block[query_place.stage].first_row);
  }'''))
