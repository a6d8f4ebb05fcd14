export XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS=--xla_gpu_autotune_level=0 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
mkdir -p t; cp -rs $TREE/jax_baracuda t/; for f in small_calls attention_small_calls; do cp --remove-destination $f.py t/jax_baracuda/testing/; done
mkdir -p u; cp -rs $PWD/t/jax_baracuda u/; gunzip -f ffi.gz; cp --remove-destination ffi u/jax_baracuda/_ffi.abi3.so
b=$(date +%s)
san() { n=$1; t=$2; shift 2; timeout -s KILL 86 env PYTHONPATH=$PWD/u compute-sanitizer --tool $t --print-limit 100 --kernel-name kns=jax_baracuda --error-exitcode 9 python3 -P -m jax_baracuda.testing.attention_small_calls --no-check --only "$@" > $n.txt 2>&1; echo "rc=$? $(( $(date +%s) - b )) s" >> $n.txt; }
rep() { n=$1; shift; (PYTHONPATH=$PWD/t LIMIT=68 timeout -s KILL 86 python3 -P repeat.py "$@" > $n.txt 2>&1) & }
SKIP=2 rep bwd1 bwd 64/64 128/128 256/256
SKIP=2 rep bwd2 bwd 192/192 96/96 192/128
rep fwd1 fwd 64/64 128/128 256/256
rep fwd2 fwd 192/192 96/96 192/128
for d in 64 128; do
  p=bfloat16-$d-$d
  san race-$d-scores racecheck $p-soft-cap $p-alibi &
  san race-$d-bias-drop racecheck $p-bias-long $p-bias-causal $p-dropout &
  san race-$d-plain racecheck $p-plain $p-many $p-long $p-split $p-causal &
  san race-$d-rest racecheck $p-everything $p-packed $p-mask $p-bias-of &
done
for d in 192 256; do p=bfloat16-$d-$d; san race-$d-plain racecheck $p-plain $p-many-causal $p-long $p-split $p-causal $p-packed-d & done
wait
for f in race-*.txt; do echo "## $f cases $(grep -cE '^b?float16-' $f) last $(grep -E '^b?float16-' $f | tail -1) $(grep SUMMARY $f | cut -c11-) $(tail -1 $f)"; done
grep -hE "^(FAIL|bwd|fwd|no time)" bwd*.txt fwd*.txt | cut -c1-300; grep -c ^ok bwd*.txt fwd*.txt
for f in race-*.txt; do grep -q "SUMMARY.*: 0 " $f || { echo "== $f"; grep -E "Error|Warning|Race reported|and (Write|Read)|Traceback" $f | sed -E 's/jax_baracuda:://g; s/=========//; s/\(int\)|\(bool\)//g; s/void //; s/(Hopper(Forward|Backward)?Params|__nv_bfloat16)//g' | sort | uniq -c | sort -rn | head -14 | cut -c1-200; }; done
grep -hE "^ok|Error" bwd*.txt fwd*.txt | cut -c1-170
