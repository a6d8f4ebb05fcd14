gunzip -f *.gz 2>/dev/null; chmod +x ab ab16 2>/dev/null
export XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS=--xla_gpu_autotune_level=0 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
rep() { PYTHONPATH=$TREE LIMIT=66 timeout -s KILL 84 python3 -P repeat.py "$@" > "rep-$1-${2%/*}.txt" 2>&1 & }
rep bwd 256/256; rep bwd 192/192 192/128; rep fwd 256/256 192/192 192/128
r() { timeout -s KILL 40 "$@" 2>&1 | cut -c1-170 | head -14; echo "t=$SECONDS"; }
r ./ab check 128 -x -q -n -ob n128
r ./ab check 64 -x -q -n -ob n64
r ./ab check 96 -x -q -n -ob n96
r ./ab check 256 -x -q -n -ob n256
r ./ab check 192 -v128 -x -q -n -ob n192v
r ./ab16 check 128 -x -q -n -ob nh128
r ./ab16 check 64 -x -q -n -ob nh64
wait
grep -hE "^(ok|FAIL|bwd|fwd|no time|Trace|.*Error)" rep-*.txt | cut -c1-200
