W=${W:-$ROOT}; F="-std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 -Xfatbin=-compress-all --expt-relaxed-constexpr -cudart static -Xcompiler=-static-libstdc++,-static-libgcc -I$W/ffi"
python3 - $2 > gen_$1.cu <<'P'
import sys
s=open('base.inc').read().replace('@@VARIANTS@@',open('variants.inc').read()).replace('@@BENCH@@',open(sys.argv[1]).read())
print(s)
P
(cd comb; nice -n 10 nvcc $F -I. -c c_v0.cu -o c_v0.o; nice -n 10 nvcc $F -c $W/ffi/decode/combine.cu -o combine.o)
nice -n 10 nvcc $F $3 $4 -o $1 gen_$1.cu comb/c_v0.o comb/combine.o && strip $1 && ls -la $1
