#!/bin/bash
# build.sh NAME OUTDIR FFI flags...
n=$1; out=$2; ffi=$3; shift 3
cd $HERE/src
nice -n 10 nvcc -std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 --expt-relaxed-constexpr -cudart static -shared -Xcompiler=-fPIC,-fvisibility=hidden,-static-libstdc++,-static-libgcc -Xptxas -v -I$ffi "$@" -o ../$out/$n.so variant.cu $ffi/attention/hopper/backward/dispatch.cc $ffi/common/tensor_map.cc > ../obj/$n.log 2>&1 || { echo FAILED $n; grep error ../obj/$n.log; }
strip ../$out/$n.so; grep -E "spill|C75|error" ../obj/$n.log | sort | uniq -c | cut -c1-160 | head -8; ls -la ../$out/$n.so
