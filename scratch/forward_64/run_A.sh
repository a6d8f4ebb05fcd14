chmod +x bench; B=$PWD/bench
nvidia-smi --query-gpu=name,clocks.sm,power.draw,temperature.gpu --format=csv,noheader
chmod +x micro; timeout -s KILL 5 ./micro
q() { timeout -s KILL 5 $B queues $1 $2 $3 "$4" ${5:-10} ${6:-5} 1 0 2>&1 | sed 's/([0-9.-]*)//g; s/, queues of [0-9]* ms//; s/ | /\n   /g'; }
V="o on e oe one oeg og ne lag g0 g64 g96 og0 og64 y4 op4 op2"
q 64 0 4096 "three $V oj onj ej oje" 12 4
q 64 0 512 "$V"
q 64 1 16384 "three o on e oe oeg og g64 og0 og64 op4 oj onj" 12 3
q 64 1 2048 "o on e oe og g64 og0 og64 op4"
q 64 0 1024 "o on e oe og g64 og0 og64 op4"
q 64 0 16384 "o e oe g64 og0 op4" 40 3
for c in 0 1; do
q 96 $c 4096 "96a 96b n96a n96b o96 o96b o96j" 8 3
q 192 $c 4096 "o192" 8 4
DV=128 q 192 $c 4096 "o192v" 8 4
done
q 96 0 512 "96a n96b o96 o96b o96j" 6 3
q 96 1 512 "96a n96b o96 o96b" 6 3
q 192 1 512 "o192" 6 3
DV=128 q 192 1 512 "o192v" 6 3
hot() {
  timeout 9 ncu --clock-control none --launch-skip 1 --launch-count 1 -k regex:hopper -f -o rep --section SpeedOfLight --section ComputeWorkloadAnalysis --section WarpStateStats --section SourceCounters $B one $* > ncu.log 2>&1 || tail -3 ncu.log
  timeout 3 ncu --import rep.ncu-rep --page raw --csv > raw.csv 2>/dev/null
  python3 - <<'P'
import csv
r=list(csv.reader(open('raw.csv')))
for h,u,v in zip(r[0],r[1],r[2]):
    if ('pipe' in h and 'avg.pct' in h and 'active' in h) or 'issue_active.avg' in h or 'issues_stalled' in h or 'inst_issued.avg' in h or 'duration' in h or 'warp_issue_stalled' in h and 'ratio' in h: print(' ',h,v,u)
P
  timeout 4 ncu --import rep.ncu-rep --page source --csv 2>/dev/null | python3 hot.py
}
for v in "*three" oe; do echo "== ncu full 4096 $v"; hot 64 4096 0 "$v"; done 2>&1 | head -400
