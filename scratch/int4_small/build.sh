#!/bin/bash
# build.sh OUT : every small instantiation of the worktree, and the old ones that objects in ../src/o have (names in old.txt)
cd $HERE/final; W=$ROOT
F="-std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 --expt-relaxed-constexpr -cudart static -I$W/ffi"
tiles=$(($(grep -o 'SMALL_INT4_TILES [0-9]*' $W/ffi/int4/instantiations.cmake | grep -o '[0-9]*$') - 1))
newest=$(ls -t $W/ffi/int4/{small,small_sums,dequantise,product}.cuh $W/ffi/int4/inst/small.cuh | head -1)
objs=""; entries=""
for d in kF16 kBF16; do for t in $(seq 0 $tiles); do for s in 2 4 8; do
 n=o/small_${d}_${t}_$s; objs="$objs $n.o"; entries+="small_int4_kernel_entry<DType::$d, $t, $s>(),"$'\n'
 tile=$(python3 - $t <<'P'
import re,sys
t=open('$ROOT/ffi/int4/config.h').read(); b=t[t.index('kSmallTiles[] = {'):]; b=b[:b.index('};')]
rows=re.findall(r'\{(\d[^{}]*)\}',b); print(','.join(x.strip() for x in rows[int(sys.argv[1])].split(',')[:6]))
P
)
 echo "// $tile" > $n.new; sed "s/@DTYPE@/$d/; s/@TILE@/$t/; s/@SCALES@/$s/" $W/ffi/int4/inst/small.cu.in >> $n.new
 cmp -s $n.new $n.cu && rm $n.new || mv $n.new $n.cu
 if [ ! -f $n.o ] || [ $n.cu -nt $n.o ] || [ $newest -nt $n.o ]; then nice -n 10 nvcc $F -Xptxas=-v -c $n.cu -o $n.o > $n.log 2>&1 || { cat $n.log | head; exit 1; }
 echo "$d $t($tile) $s: $(grep -ho "Used [0-9]* reg\|[0-9]* bytes spill stores\|C75.*" $n.log | tr '\n' ' ')"; fi
done; done; done
python3 - "$entries" > o/table.cu <<'P'
import sys
t=open('$ROOT/ffi/int4/inst/table.cc.in').read()
for n,v in (("SMALL",sys.argv[1]),("MEDIUM",""),("LARGE","")): t=t.replace(f"@{n}_INT4_ENTRIES@",v)
print(t)
P
cp $W/ffi/int4/dispatch.cc o/dispatch.cu; cp $W/ffi/int4/combine.cu o/combine.cu; cp $W/ffi/common/tensor_map.cc o/tensor_map.cu
for f in table dispatch combine tensor_map; do nice -n 10 nvcc $F -c o/$f.cu -o o/$f.o || exit 1; done
old=""; decl=""; calls=""
while read T A; do CT=$([ $T = f ] && echo __half || echo __nv_bfloat16); n=../src/o/${T}_${A//,/_}; old="$old $n.o"; decl+="template <> Entry make_entry<$CT, $A>();"$'\n'; calls+="make_entry<$CT, $A>(), "; done < old.txt
{ echo "$decl"; echo "static const std::vector<Entry>& old_entries() { static const std::vector<Entry> e = { $calls }; return e; }"; } > o/old.inc
nice -n 10 nvcc $F -I../src -Io -c main.cu -o o/main.o && nvcc $F o/main.o o/table.o o/dispatch.o o/combine.o o/tensor_map.o $objs $old -o $1 -ldl -Xcompiler=-static-libstdc++,-static-libgcc && strip $1 && ls -la $1
