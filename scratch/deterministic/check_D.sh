export XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS=--xla_gpu_autotune_level=0 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
gunzip -f ffi.gz; mkdir -p u; tar xzf py.tgz -C u; cp ffi u/jax_baracuda/_ffi.abi3.so; export PYTHONPATH=$PWD/u
b=$(date +%s)
M="python3 -P -m jax_baracuda.testing.attention_small_calls"
san() { n=$1; t=$2; shift 2; timeout -s KILL 80 compute-sanitizer --tool $t --print-limit 100 --kernel-name kns=jax_baracuda --error-exitcode 9 $M --no-check --only "$@" > $n.txt 2>&1; echo "rc=$? $(( $(date +%s) - b )) s" >> $n.txt; }
right() { n=$1; shift; timeout -s KILL 80 $M --only "$@" > $n.txt 2>&1; echo "rc=$? $(( $(date +%s) - b )) s" >> $n.txt; }
for x in 64 128; do
  p=bfloat16-$x-$x
  san race-$x-scores racecheck $p-soft-cap $p-alibi &
  san race-$x-bias racecheck $p-bias $p-row-bias &
  san race-$x-drop racecheck $p-dropout $p-steep &
  san mem-$x memcheck $p-soft-cap-c $p-alibi-long $p-bias-c $p-bias-l $p-row-bias $p-dropout &
  right right-$x $p-soft-cap $p-alibi $p-bias $p-row-bias $p-dropout &
done
san race-192 racecheck bfloat16-192-192-soft-cap bfloat16-192-192-dropout &
san race-96 racecheck bfloat16-96-96-soft-cap &
(PYTHONPATH=$TREE ONLY=dropout_rate LIMIT=66 timeout -s KILL 80 python3 -P repeat.py fwd 128/128 64/64; PYTHONPATH=$TREE) > fwd1.txt 2>&1 &
(PYTHONPATH=$TREE ONLY=dropout_rate,segments LIMIT=66 timeout -s KILL 80 python3 -P repeat.py bwd 128/128 256/256 192/192 96/96 192/128) > bwd1.txt 2>&1 &
wait
for f in race-*.txt mem-*.txt right-*.txt; do echo "## $f cases $(grep -cE '^b?float16-' $f) last $(grep -E '^b?float16-' $f | tail -1) $(grep SUMMARY $f | cut -c11-) $(tail -1 $f)"; done
grep -hE "^  |Error:" right-*.txt | head -10 | cut -c1-200
for f in race-*.txt mem-*.txt; do grep -q "SUMMARY.*: 0 " $f || { echo "== $f"; grep -E "Error|Warning|Race reported|and (Write|Read)|Traceback" $f | sed -E 's/jax_baracuda:://g; s/=========//; s/\(int\)|\(bool\)//g; s/void //; s/(Hopper(Forward|Backward)?Params|__nv_bfloat16)//g' | sort | uniq -c | sort -rn | head -14 | cut -c1-200; }; done
grep -hE "^(ok|FAIL|bwd|fwd|no time)" bwd1.txt fwd1.txt | cut -c1-170
