chmod +x bench; B=$PWD/bench
nvidia-smi --query-gpu=name,clocks.sm,power.draw,temperature.gpu --format=csv,noheader
q() { timeout 4 $B queues $1 $2 $3 "$4" ${5:-14} ${6:-5} 1 0 2>&1 | sed 's/([0-9.-]*)//g; s/, queues of [0-9]* ms//; s/ [0-9]* MHz//g' || echo failed; }
q 128 1 512 "e128 e128# j128 g128 go128 ts128 gt128 f128 nc128"
q 128 0 512 "e128 e128# j128 g128 go128 ts128 gt128 f128 nc128"
q 64 1 512 "e64t e64t# s64t ts64t e64t@264 e64t@264# q264t k164t k264t f64t ff64t fs64t fl64t nc64t f64t#"
q 64 1 1024 "e64t e64t# s64t ts64t e64t@132 e64t@132# q264t k164t k264t f64t ff64t fs64t fl64t nc64t f64t@132"
q 64 0 1024 "e64 e64# e64j g64 ff64 ff64j nc64"
q 256 0 512 "u256 u2256 u256# k256 ko256 kp256 ff256 nc256"
q 256 1 512 "u256 u2256 u256# k256 ko256 kp256 ff256 nc256"
q 128 0 1024 "e128 e128# g128 ts128 gt128 f128 nc128"
q 256 0 16384 "u256" 50 4
prof() {  # dim length causal label
  echo "== $*"
  timeout 9 ncu --clock-control none --launch-skip 1 --launch-count 1 -k regex:hopper -f -o rep --section SpeedOfLight --section ComputeWorkloadAnalysis --section WarpStateStats --section SourceCounters $B one $* > ncu.log 2>&1 || tail -3 ncu.log
  timeout 3 ncu --import rep.ncu-rep --page raw --csv > raw.csv 2>/dev/null
  python3 - <<'P'
import csv
r = list(csv.reader(open("raw.csv")))
for n, u, v in zip(r[0], r[1], r[2]):
    if any(k in n for k in ("gpu__time_duration.sum", "sm__cycles_elapsed.max", "inst_issued.avg.pct", "issue_active.avg.pct", "issue_active.avg.per", "dram__throughput.avg.pct", "lts__throughput.avg.pct", "l1tex__throughput.avg.pct")) or (n.startswith("sm__inst_executed_pipe") and "pct" in n) or (n.startswith("sm__pipe") and "pct" in n): print(" ", n, v, u)
P
  timeout 4 ncu --import rep.ncu-rep --page source --csv 2>/dev/null | python3 hot.py
}
prof 64 512 1 e64t
prof 128 512 0 e128
