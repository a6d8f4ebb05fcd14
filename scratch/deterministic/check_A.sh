export XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS=--xla_gpu_autotune_level=0 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
mkdir -p t; cp -rs $TREE/jax_baracuda t/; for f in small_calls attention_small_calls; do cp --remove-destination $f.py t/jax_baracuda/testing/; done
export PYTHONPATH=$PWD/t
b=$(date +%s)
san() { n=$1; t=$2; shift 2; timeout -s KILL 86 compute-sanitizer --tool $t --print-limit 5 --kernel-name kns=jax_baracuda --error-exitcode 9 python3 -P -m jax_baracuda.testing.attention_small_calls --no-check --only "$@" > $n.txt 2>&1; echo "rc=$? $(( $(date +%s) - b )) s" >> $n.txt; }
(LIMIT=66 timeout -s KILL 86 python3 -P repeat.py bwd 64/64 128/128 256/256 > bwd1.txt 2>&1) &
(LIMIT=66 timeout -s KILL 86 python3 -P repeat.py bwd 192/192 96/96 192/128 > bwd2.txt 2>&1) &
for d in 64 128; do
  p=bfloat16-$d-$d h=float16-$d-$d
  san race-$d-scores racecheck $p-soft-cap $p-alibi &
  san race-$d-bias-drop racecheck $p-bias-long $p-bias-causal $p-dropout &
  san race-$d-plain racecheck $p-plain $p-many $p-long $p-split $p-causal &
  san mem-$d-scores memcheck $h-soft-cap $h-alibi &
  san mem-$d-bias-drop memcheck $h-bias-long $h-bias-causal $h-dropout &
  san mem-$d-plain memcheck $h-plain $h-many $h-long $h-split $h-causal &
done
(gunzip -f v0.so.gz v5.so.gz det.gz 2>/dev/null; chmod +x det; timeout 40 ./det against 192 60 0 v0 v5; WAVES=1 timeout 40 ./det check 192 -d -r20 v5) > det5.txt 2>&1 &
wait
for f in race-* mem-*; do echo "## $f cases $(grep -cE '^b?float16-' $f) last $(grep -E '^b?float16-' $f | tail -1) $(grep SUMMARY $f | cut -c11-) $(tail -1 $f)"; done
cat det5.txt; grep -hE "^(FAIL|bwd|no time)" bwd*.txt | cut -c1-300; grep -c ^ok bwd*.txt
for f in race-* mem-*; do grep -q "SUMMARY.*: 0 " $f || { echo "== $f"; grep -E "Error|Warning|Race reported|and (Write|Read)|Traceback|[A-Z][a-z]+Error" $f | head -6 | cut -c1-330; }; done
grep -hE "^ok|Error" bwd*.txt | cut -c1-170
