# inst.sh DTYPE DIM DIMV N GROUPS QS FEATURES USE: compiles the repository's instantiation from the worktree
cd $HERE/obj; mkdir -p inst
F=inst/hopper_$1_$2_$3_$4_$5_$6_$7_$8
sed "s/@DTYPE@/$1/;s/@DIM@/$2/;s/@DIM_V@/$3/;s/@N@/$4/;s/@GROUPS@/$5/;s/@QUERY_STAGES@/$6/;s/@FEATURES@/$7/;s/@USE@/$8/" $ROOT/ffi/attention/hopper/inst/kernel.cu.in > $F.cu
nice -n 10 nvcc -c -std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 -DNDEBUG --expt-relaxed-constexpr -Xfatbin=-compress-all -Xcompiler=-fPIC -Xptxas -v -I$ROOT/ffi -o $F.o $F.cu > $F.log 2>&1
echo "$1 $2 $3 $4 $5 $6 $7 $8 rc $? $(grep -o 'Used [0-9]* reg' $F.log|sort -u | tr '\n' ' ') $(grep -o '[1-9][0-9]* bytes spill stores' $F.log | sort -u | tr '\n' ' ') $(grep -o 'C75[0-9]*' $F.log | sort -u)"; grep -m3 error $F.log
