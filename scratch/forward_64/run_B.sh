chmod +x bench micro; B=$PWD/bench
nvidia-smi --query-gpu=clocks.sm,power.draw,temperature.gpu --format=csv,noheader
timeout -s KILL 5 ./micro
q() { timeout -s KILL 5 $B queues $1 $2 $3 "$4" ${5:-10} ${6:-4} 1 0 2>&1 | sed 's/([0-9.-]*)//g; s/, queues of [0-9]* ms//; s/ | /\n   /g'; }
q 64 0 4096 "three o q qo h4 h4s h2 h6 h8 h4n h4j y8 y4" 12 4
q 64 0 512 "two o q qo qt h4 h2 h6 h8" 8 5
q 64 1 16384 "three o q h4 h2 h6 h8 h4n y8" 12 4
q 64 0 16384 "three o h4 h2 h6 h4n" 24 3
q 64 1 4096 "o q h4 h2 h6" 8 4
q 64 1 2048 "o q h4 h2 h6 h8" 8 4
q 64 1 1024 "three qt h4" 8 4
q 64 1 512 "qt h4" 8 4
q 64 0 1024 "o q h4 h2 h6" 8 4
for c in 0 1; do
q 96 $c 4096 "o96 q96" 8 4
q 96 $c 1024 "96b o96 q96 n96b" 6 4
q 192 $c 4096 "o192 q192" 8 6
DV=128 q 192 $c 4096 "o192v q192v" 8 6
q 128 $c 4096 "q128 q128s" 8 6
q 128 $c 512 "q128 q128s" 6 5
done
q 128 1 16384 "q128 q128s" 8 5
hot() {
  timeout 9 ncu --clock-control none --launch-skip 1 --launch-count 1 -k regex:hopper -f -o rep --section SpeedOfLight --section ComputeWorkloadAnalysis --section WarpStateStats --section SourceCounters $B one $* > ncu.log 2>&1 || tail -3 ncu.log
  timeout 4 ncu --import rep.ncu-rep --page source --csv 2>/dev/null | python3 hot.py
}
echo "== ncu full 4096 h4"; hot 64 4096 0 h4 2>&1 | cut -c1-400 | head -60
