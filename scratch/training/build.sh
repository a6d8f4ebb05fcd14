# build.sh OUT FFI
nice -n 5 nvcc -std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 --expt-relaxed-constexpr -cudart static -Xcompiler=-static-libstdc++,-static-libgcc -DDIMS=3 -Xptxas -v -I$2 -I. -o $1 main.cu $2/attention/hopper/backward/dispatch.cc $2/common/tensor_map.cc > $1.log 2>&1
echo $1 $?; grep -E "error|C75" $1.log; grep -E "spill" $1.log | sort | uniq -c
