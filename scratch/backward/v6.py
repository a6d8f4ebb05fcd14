import sys
b=sys.argv[1]+'/attention/hopper/backward/'
o=set(sys.argv[2:])
s=open(b+'consumer.cuh').read()
def rep(a,c,n=1):
    global s
    assert s.count(a)==n,(s.count(a),a)
    s=s.replace(a,c)
if 'f' in o:
    rep('''      weigh_rows(r, tile, block, due, accumulate);''','''      weigh_rows(r, tile, block, flags, due, accumulate);''')
    rep('''const RowBlock& block,
                                             bool due, bool accumulate) {''','''const RowBlock& block,
                                             int flags, bool due, bool accumulate) {''')
    rep('''    const int flags = block.flags;
    option.change(r.s);''','''    if (!Traits::kSumGroup) flags = block.flags;
    option.change(r.s);''')
if 'd' in o:
    rep('''      differentiate_part<0, kHalf>(r, accumulate);
''','''      if constexpr (Traits::kSumGroup) {
        differentiate_part<0, kHalf / 2>(r, accumulate);
        differentiate_part<kHalf / 2, kHalf>(r, accumulate);
      } else
      differentiate_part<0, kHalf>(r, accumulate);
''')
if 'd4' in o:
    rep('''      differentiate_part<kHalf, kRows>(r, accumulate);
      warpgroup_commit();''','''      if constexpr (Traits::kSumGroup) {
        differentiate_part<kHalf, kHalf * 3 / 2>(r, accumulate);
        differentiate_part<kHalf * 3 / 2, kRows>(r, accumulate);
      } else
      differentiate_part<kHalf, kRows>(r, accumulate);
      warpgroup_commit();''')
if 'd1' in o:  # dS all at once, then dK
    rep('''      differentiate_part<0, kHalf>(r, accumulate);
      differentiate_part<kHalf, kRows>(r, accumulate);
''','''      differentiate_part<0, kRows>(r, accumulate);
''')
if 'p' in o:
    rep('''    if (Traits::kInterleaves) weigh_part<0, kHalf>(r, option, tile, block, accumulate);''','''    if constexpr (Traits::kSumGroup) {
      weigh_part<0, kHalf / 2>(r, option, tile, block, accumulate);
      weigh_part<kHalf / 2, kHalf>(r, option, tile, block, accumulate);
    } else if (Traits::kInterleaves) weigh_part<0, kHalf>(r, option, tile, block, accumulate);''')
open(b+'consumer.cuh','w').write(s)
