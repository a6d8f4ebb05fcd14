import sys
root=sys.argv[1]+'/attention/hopper/backward/'
f=root+'consumer.cuh'; s=open(f).read()
def rep(a,b,n=1):
    global s
    assert s.count(a)==n,(a,s.count(a))
    s=s.replace(a,b)
rep('''  // The row block before the one at hand.
  __device__ __forceinline__ const RowBlock& block_before() const {
    return control.recent[(count - 1) % 8];
  }
''','''  // The row block before the one at hand. With features, for want of registers, each warp has a copy.
  __device__ __forceinline__ const RowBlock& block_before() const {
    return control.recent[Traits::kFeatures ? 4 * group + warp : (count - 1) % 8];
  }
  __device__ __forceinline__ void copy_block_before() const {
    if (!Traits::kFeatures) return;
    if (lane == 0) control.recent[4 * group + warp] = control.block[query_stage_before()];
    __syncwarp();
  }
''')
rep('''      if (due) finish_query_gradient(r);
''','''      if (due) finish_query_gradient(r);
      copy_block_before();
''')
rep('''    release(control.query_empty[query_stage_before()]);
    ++count;
    // Both''','''    copy_block_before();
    release(control.query_empty[query_stage_before()]);
    ++count;
    // Both''')
rep('''    if (!kStoresEarly) store(r, tile);
  }''','''  }''')
rep('''        store(r, tile);
      }
''','''        if (kStoresEarly) store(r, tile);
      }
      if (!kStoresEarly) store(r, tile);
''')
s=s.replace('issue_key_gradient(r, accumulate);','issue_key_gradient(r, Traits::kPasses ? accumulate : due);')
open(f,'w').write(s)
f=root+'traits.cuh'; s=open(f).read()
rep('''  // The last row blocks by their numbers, for consumers that finish dQ when Q's place has another one.
''','''  // The last row blocks by their numbers, for consumers that finish dQ when Q's place has another one. With features: for
  // each consumer warp, the last one.
''')
open(f,'w').write(s)
f=root+'producer.cuh'; s=open(f).read()
rep('if constexpr (!kPair) control.recent','if constexpr (!kPair && !Traits::kFeatures)\n        control.recent')
rep('KeyTileWalk<kPair> walk(p, first, in_order());','''// With features there is no register for a place asked for early.
    KeyTileWalk<kPair> walk(p, first, Traits::kFeatures || in_order());''')
open(f,'w').write(s)
f=root+'consumer.cuh'; s=open(f).read()
rep('''    return shared + Traits::kSumOffset + (4 * group + warp) * Traits::kWarpQueryBytes;
''','''    int index = 4 * group + warp;
    if (Traits::kFeatures) asm volatile("" : "+r"(index));  // there is no register to keep it in
    return shared + Traits::kSumOffset + index * Traits::kWarpQueryBytes;
''')
open(f,'w').write(s)
s=open(f).read()
rep('''    int index = 4 * group + warp;
    if (Traits::kFeatures) asm volatile("" : "+r"(index));  // there is no register to keep it in
    return shared + Traits::kSumOffset + index * Traits::kWarpQueryBytes;
''','''    return shared + Traits::kSumOffset + warp_index() * Traits::kWarpQueryBytes;
''')
rep('''  // The row block before the one at hand. With features''','''  // Of the consumers' warps. With features there are no registers for addresses that follow from it.
  __device__ __forceinline__ int warp_index() const {
    int index = 4 * group + warp;
    if (Traits::kFeatures) asm volatile("" : "+r"(index));
    return index;
  }

  // The row block before the one at hand. With features''')
rep('control.recent[Traits::kFeatures ? 4 * group + warp :','control.recent[Traits::kFeatures ? warp_index() :')
rep('control.recent[4 * group + warp]','control.recent[warp_index()]')
rep('''    if (lane == 0) control.left[4 * group + warp] = block;
''','''    if (lane == 0) control.left[warp_index()] = block;
''')
rep('''      const int buffer = 4 * group + warp;
      const int64_t block = control.left''','''      const int buffer = warp_index();
      const int64_t block = control.left''')
open(f,'w').write(s)
s=open(f).read()
rep('''    if (!Traits::kFeatures) return;
    if (lane == 0) control.recent''','''    if (!Traits::kFeatures) return;
    int own_lane = lane;
    asm volatile("" : "+r"(own_lane));
    if (own_lane == 0) control.recent''')
open(f,'w').write(s)
