import sys
b=sys.argv[1]+'/attention/hopper/backward/'
o=set(sys.argv[2:])
s=open(b+'consumer.cuh').read()
def rep(a,c,n=1):
    global s
    assert s.count(a)==n,(s.count(a),a)
    s=s.replace(a,c)
if 'p' in o:
    rep('''    if (Traits::kInterleaves) weigh_part<0, kHalf>(r, option, tile, block, accumulate);''','''    if constexpr (kEarly) {
      weigh_part<0, kHalf / 2>(r, option, tile, block, accumulate);
      weigh_part<kHalf / 2, kHalf>(r, option, tile, block, accumulate);
    } else if (Traits::kInterleaves) weigh_part<0, kHalf>(r, option, tile, block, accumulate);''')
if 'd' in o:
    rep('''      differentiate_part<0, kHalf>(r, accumulate);
''','''      if constexpr (kEarly) {
        differentiate_part<0, kHalf / 2>(r, accumulate);
        differentiate_part<kHalf / 2, kHalf>(r, accumulate);
      } else
      differentiate_part<0, kHalf>(r, accumulate);
''')
if 'd4' in o:
    rep('''      differentiate_part<kHalf, kRows>(r, accumulate);
      warpgroup_commit();''','''      if constexpr (kEarly) {
        differentiate_part<kHalf, kHalf * 3 / 2>(r, accumulate);
        differentiate_part<kHalf * 3 / 2, kRows>(r, accumulate);
      } else
      differentiate_part<kHalf, kRows>(r, accumulate);
      warpgroup_commit();''')
open(b+'consumer.cuh','w').write(s)
