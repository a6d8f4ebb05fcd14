export XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS=--xla_gpu_autotune_level=0 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
gunzip -f *.gz 2>/dev/null; chmod +x det deth
mkdir -p t; cp -rs $TREE/jax_baracuda t/; for f in small_calls attention_small_calls; do cp --remove-destination $f.py t/jax_baracuda/testing/; done
mkdir -p u; cp -rs $PWD/t/jax_baracuda u/; cp --remove-destination ffi u/jax_baracuda/_ffi.abi3.so
b=$(date +%s)
d() { n=$1; shift; (timeout -s KILL 84 "$@" > det-$n.txt 2>&1; echo "rc=$? $(( $(date +%s) - b )) s: $*" >> det-$n.txt) & }
d 256 ./det check 256 -d -r20 vcp
d 192128 ./det check 192128 -d -r20 vcp
d 192w env WAVES=1 ./det check 192 -d -r10 vcp
d 192f ./det check 192 vcp
d h256 ./deth check 256 -d -r10 vcph
d h192 ./deth check 192 -d -r10 vcph
d a192 ./det against 192 400 0 v0p vcp
d a256 ./det against 256 400 0 v0p vcp
d mem timeout 60 compute-sanitizer --tool memcheck ./det small 192 vcp
san() { n=$1; t=$2; shift 2; timeout -s KILL 86 env PYTHONPATH=$PWD/u compute-sanitizer --tool $t --print-limit 100 --kernel-name kns=jax_baracuda --error-exitcode 9 python3 -P -m jax_baracuda.testing.attention_small_calls --no-check --only "$@" > $n.txt 2>&1; echo "rc=$? $(( $(date +%s) - b )) s" >> $n.txt; }
rep() { n=$1; shift; (PYTHONPATH=$PWD/t LIMIT=68 timeout -s KILL 86 python3 -P repeat.py "$@" > $n.txt 2>&1) & }
SKIP=6 rep bwd1 bwd 64/64
SKIP=6 rep bwd2 bwd 128/128
SKIP=5 rep bwd3 bwd 192/128 256/256 192/192 96/96
SKIP=5 rep fwd1 fwd 64/64 128/128 192/128
for x in 192 256; do p=bfloat16-$x-$x; san race-$x-plain racecheck $p-plain $p-many-causal $p-long $p-split $p-causal $p-packed-d & done
wait
grep -hvE "^small" det-*.txt
for f in race-*.txt; do echo "## $f cases $(grep -cE '^b?float16-' $f) last $(grep -E '^b?float16-' $f | tail -1) $(grep SUMMARY $f | cut -c11-) $(tail -1 $f)"; done
grep -hE "^(FAIL|bwd|fwd|no time)" bwd*.txt fwd*.txt | cut -c1-300; grep -c ^ok bwd*.txt fwd*.txt
for f in race-*.txt; do grep -q "SUMMARY.*: 0 " $f || { echo "== $f"; grep -E "Error|Warning|Race reported|and (Write|Read)|Traceback" $f | sed -E 's/jax_baracuda:://g; s/=========//; s/\(int\)|\(bool\)//g; s/void //; s/(Hopper(Forward|Backward)?Params|__nv_bfloat16)//g' | sort | uniq -c | sort -rn | head -14 | cut -c1-200; }; done
grep -hE "^ok|Error" bwd*.txt fwd*.txt | cut -c1-170
