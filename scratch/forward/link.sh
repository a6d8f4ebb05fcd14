# link.sh LIST OUT objs...
cd $HERE/src
LIST=$1; OUT=$2; shift 2
F="-std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 -DNDEBUG --expt-relaxed-constexpr -cudart static -Xfatbin=-compress-all -Xcompiler=-static-libstdc++,-static-libgcc -I$ROOT/ffi"
B=$HERE
BASE=""; for t in 128_128_128_2_2_false_kAny 128_128_128_2_1_false_kAny 64_64_64_2_1_false_kTwoCtas 64_64_128_3_1_false_kAny 256_256_80_2_1_false_kAny 128_128_112_2_1_true_kAny 64_64_128_2_1_true_kAny; do BASE="$BASE $B/hopper_kBF16_$t.cu.o"; done
O=""; for o in "$@"; do O="$O ../obj/$o.o"; done
[ -f ../obj/base.o ] || nice -n 10 nvcc -c $F base.cu -o ../obj/base.o || exit 1
[ -f ../obj/tm.o ] || nice -n 10 nvcc -c $F $ROOT/ffi/common/tensor_map.cc -o ../obj/tm.o
[ -f ../obj/di.o ] || nice -n 10 nvcc -c $F $ROOT/ffi/common/device_info.cc -o ../obj/di.o 2>/dev/null
nice -n 10 nvcc $F -DLIST=\"$LIST\" -o $OUT bench.cu ../obj/base.o ../obj/tm.o $([ -f ../obj/di.o ] && echo ../obj/di.o) $BASE $O 2>&1 | grep -v "^$" | grep -i "error\|undefined" | head
strip $OUT; ls -la $OUT
