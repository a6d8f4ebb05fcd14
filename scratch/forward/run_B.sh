chmod +x bench; B=$PWD/bench
nvidia-smi --query-gpu=name,clocks.sm,power.draw,temperature.gpu --format=csv,noheader
q() { timeout 3 $B queues $1 $2 $3 "$4" ${5:-13} ${6:-5} 1 0 2>&1 | sed 's/([0-9.-]*)//g; s/, queues of [0-9]* ms//; s/ [0-9]* MHz//g' || echo failed; }
q 64 1 512 "p64t p64tn x64t pf64t pk64t pfn64t"
q 64 1 1024 "p64t p64tn x64t pf64t pk64t pfn64t p64t@132"
q 128 1 512 "p128 x128 nc128 h128 h0128"
q 128 0 512 "p128 x128 nc128"
q 128 1 1024 "p128 x128 nc128 h128 h0128"
q 128 0 1024 "p128 x128"
q 64 0 512 "p64 p64n x64n"
q 64 0 1024 "p64 p64n x64n"
q 64 1 2048 "p64 p64n x64n pf64t"
q 256 0 512 "p256 x256 kq256 kqo256"
q 256 1 512 "p256 x256 kq256 kqo256"
q 256 1 1024 "p256 x256 kq256 kqo256"
q 256 0 1024 "p256 x256 kqo256"
q 64 0 4096 "p64jn" 20 3
q 128 1 4096 "p128" 20 4
q 128 1 16384 "p128" 40 3
q 64 1 16384 "p64jn" 40 3
prof() {  # dim length causal label
  echo "== $*"
  timeout 7 ncu --clock-control none --launch-skip 1 --launch-count 1 -k regex:hopper -f -o rep --section SpeedOfLight --section ComputeWorkloadAnalysis --section WarpStateStats --section SourceCounters $B one $* > ncu.log 2>&1 || tail -3 ncu.log
  timeout 3 ncu --import rep.ncu-rep --page raw --csv > raw.csv 2>/dev/null
  python3 - <<'P'
import csv
r = list(csv.reader(open("raw.csv")))
print("  " + ", ".join(f"{n.split('__')[1].replace('.avg.pct_of_peak_sustained_active', '')} {v}" for n, u, v in zip(r[0], r[1], r[2]) if n.endswith("avg.pct_of_peak_sustained_active") and any(k in n for k in ("pipe_alu_c", "pipe_fma_c", "pipe_xu", "pipe_tensor_c", "issue_act", "pipe_lsu", "uniform")) or n in ("gpu__time_duration.sum", "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed", "lts__throughput.avg.pct_of_peak_sustained_elapsed")))
P
  timeout 4 ncu --import rep.ncu-rep --page source --csv 2>/dev/null | python3 hot.py
}
prof 64 1024 1 p64t
prof 128 512 0 p128
