cd "$(dirname "$0")"; here=$PWD; gunzip -kf *.gz; chmod +x f_* i_* tiny
o=$(mktemp -d); export XLA_PYTHON_CLIENT_PREALLOCATE=false
san() {  # NAME SECONDS TOOL FILTER program...: its summary and its first hazards
  local n=$1 s=$2 t=$3 k=$4; shift 4; local b=$(date +%s)
  local extra=; [ $t = racecheck ] && extra="--racecheck-report ${REPORT:-all}"
  timeout $s compute-sanitizer --tool $t $extra --print-limit ${LIMIT:-4} --kernel-name kns=$k "$@" > $o/raw.$n 2>&1; local rc=$?
  { echo "## $n rc $rc, $(( $(date +%s) - b )) s: $(grep SUMMARY $o/raw.$n | cut -c11-)"
    grep -E "Error:|Warning|Write Thread|Read Thread|Read access|Write access|Current Value|Invalid|passed|failed|sum|ok  |FAIL" $o/raw.$n | grep -vE "SUMMARY" | sed -E 's/void jax_baracuda::(hopper_forward_kernel|hopper_pair_kernel|int4_small_kernel|decode_ring_kernel|[a-z_0-9]+)<.*\)\+/\1+/' | cut -c1-190 | head -${LINES_:-9}; } > $o/san.$n; }
py() {  # NAME SECONDS arguments of pytest...
  local n=$1 s=$2; shift 2; local b=$(date +%s)
  (cd $TREE; OPENBLAS_NUM_THREADS=2 timeout $s python3 -P -m pytest -q -p no:cacheprovider --durations=8 "$@" > $o/raw.$n 2>&1); local rc=$?
  { echo "## $n rc $rc, $(( $(date +%s) - b )) s"; grep -E "passed|failed|^E  |s call|s setup|FAILED|skipped" $o/raw.$n | cut -c1-180 | head -24; } > $o/py.$n; }
py many 100 tests/attention/test_short.py::test_many_tiles_of_each_kind_in_one_call tests/paged/test_hopper_prefill.py::test_keys_that_lie_in_pages_or_not_give_the_same_bits &
py serving 135 tests/examples/test_serving_graph.py &
py curve 135 tests/examples/test_training.py -k loss_curve_is_that_of_cudnn &
py slow 100 tests/attention/test_numerics_backward.py -k "heads-1-17 or (random_cases and 3)" &
(OPENBLAS_NUM_THREADS=2 timeout 90 python3 -P hang.py > $o/hang 2>&1; echo "rc $?" >> $o/hang) &
( san fwd 12 racecheck hopper_forward ./f_base 192 150 170 2
  san fwd-syncrel 12 racecheck hopper_forward ./f_syncrel 192 150 170 2
  san fwd-allarrive 12 racecheck hopper_forward ./f_allarrive 192 150 170 2
  san fwd-1block 12 racecheck hopper_forward ./f_base 192 150 100 2
  san fwd-3blocks 12 racecheck hopper_forward ./f_base 192 150 300 2
  san fwd-6blocks 12 racecheck hopper_forward ./f_base 192 150 600 2
  san fwd-1head 12 racecheck hopper_forward ./f_base 192 150 170 1
  san fwd-192n64 12 racecheck hopper_forward ./f_n64_256 19264 150 170 2
  san fwd-256 12 racecheck hopper_forward ./f_n64_256 256 150 170 2
  san fwd-256long 12 racecheck hopper_forward ./f_n64_256 256 150 600 2 ) &
( san i4 12 racecheck int4_small ./i_base4 17 200 200 1
  san i4-cluster 12 racecheck int4_small ./i_base4 17 200 200 2
  san i4-twice 12 racecheck int4_small ./i_twice 17 200 200 1
  san i4-nobar 12 racecheck int4_small ./i_nobar 17 200 200 1
  san i4-even 12 racecheck int4_small ./i_base4 17 512 200 1
  san i4-even-allsync 12 racecheck int4_small ./i_allsync 17 512 200 1
  san i4-steps2 12 racecheck int4_small ./i_base2 17 200 200 1
  san i4-tile5 12 racecheck int4_small ./i_tile5 9 200 200 1
  san i4-128channels 12 racecheck int4_small ./i_base4 17 200 128 1 ) &
( for a in "0 2 1" "0 4 1" "0 1 2" "1 2 17" "1 5 17" "1 2 16"; do san tiny-${a// /-} 8 racecheck tiny ./tiny $a; done
  for a in "2 2 4" "2 3 4" "2 6 4" "3 2 4"; do san tiny-${a// /-} 8 racecheck tiny ./tiny $a; done ) &
pysan() { (cd $TREE; XLA_FLAGS=--xla_gpu_autotune_level=0 san "$@"); }
pysan rings 100 racecheck decode python3 -P -m pytest -q -p no:cacheprovider tests/decode/test_rings.py -k short_requests &
pysan clusters 100 racecheck decode python3 -P -m pytest -q -p no:cacheprovider tests/decode/test_clusters.py -k "fixed_split and bfloat16-128-8" &
pysan clusterpages 100 racecheck decode python3 -P -m pytest -q -p no:cacheprovider tests/decode/test_clusters.py -k "in_pages and 100" &
pysan memclusters 100 memcheck decode python3 -P -m pytest -q -p no:cacheprovider tests/decode/test_clusters.py -k "fixed_split and bfloat16-128" &
REPORT=analysis LIMIT=60 LINES_=45 pysan pair192 80 racecheck hopper_pair python3 -P -m jax_baracuda.testing.attention_small_calls --no-check --only bfloat16-192-192-plain &
REPORT=analysis LIMIT=60 LINES_=20 pysan pair256 80 racecheck hopper_pair python3 -P -m jax_baracuda.testing.attention_small_calls --no-check --only bfloat16-256-256-plain &
wait
cat $o/san.* $o/hang $o/py.*
