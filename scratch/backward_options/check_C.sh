gunzip -f *.gz 2>/dev/null; chmod +x ab ab16 bg bg16 2>/dev/null
export XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS=--xla_gpu_autotune_level=0 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
mkdir -p u; tar xzf py.tgz -C u; cp ffi u/jax_baracuda/_ffi.abi3.so
PYTHONPATH=$PWD/u timeout -s KILL 86 python3 -P fullbias.py > fullbias.txt 2>&1 &
r() { timeout -s KILL 40 "$@" 2>&1 | cut -c1-190 | head -14; echo "t=$SECONDS"; }
r ./bg check 128 128 bgnew2
r ./bg check 64 64 bgnew2
r ./bg check 192 128 bgnew2
r ./bg check 256 256 bgnew2
r ./bg16 check 96 96 bgnew2
r ./bg check 40 24 bgnew2
r ./bg check 64 64 bgnew1
r ./ab check 128 -x -q -n -ob eall
r ./ab check 64 -x -q -n -ob eall
r ./ab check 96 -x -q -n -ob eall
r ./ab check 256 -x -q -n -ob eall
r ./ab check 192 -v128 -x -q -n -ob eall
r ./ab16 check 128 -x -q -n -ob ehall
r ./ab16 check 64 -x -q -n -ob ehall
timeout -s KILL 60 compute-sanitizer --tool memcheck --kernel-name kns=hopper_bias ./bg check 128 128 bgnew2 2>&1 | tail -4 | cut -c1-180
timeout -s KILL 60 compute-sanitizer --tool racecheck --kernel-name kns=hopper_bias ./bg check 64 64 bgnew2 2>&1 | grep -v "^=* *$" | tail -6 | cut -c1-240
wait
grep -v -i warn fullbias.txt | tail -30 | cut -c1-300
