chmod +x bench; B=$PWD/bench
nvidia-smi --query-gpu=clocks.sm,power.draw,temperature.gpu --format=csv,noheader
q() { timeout -s KILL 5 $B queues $1 $2 $3 "$4" ${5:-10} ${6:-4} 1 0 2>&1 | sed 's/([0-9.-]*)//g; s/, queues of [0-9]* ms//; s/ | /\n   /g'; }
q 64 0 4096 "three r8 r2 r1 r2a r2t r3a r4a r1a r6a r8g r2g r8j r2j" 12 4
q 64 1 16384 "r8 r2 r1 r2a r2t r3a r8g r2g r8j r2j" 12 4
q 64 0 512 "two rt r8 r2 r2a r2t r8g" 8 6
q 64 0 1024 "rt r8 r2 r2a" 8 5
q 64 1 1024 "rt r8 r2" 8 5
q 64 1 2048 "rt r8 r2 r2a" 8 5
q 64 0 2048 "rt r8 r2 r2a" 8 5
q 64 1 4096 "rt r8 r2 r2a" 8 5
q 64 0 16384 "r8 r2 r2a r2t" 20 3
for c in 0 1; do
q 96 $c 4096 "96b z96 r96 e96" 8 5
q 96 $c 1024 "96a 96b z96 r96" 6 5
q 96 $c 512 "96a z96 r96" 6 5
q 192 $c 4096 "z192 r192 e192" 8 6
DV=128 q 192 $c 4096 "z192v r192v e192v" 8 6
q 128 $c 4096 "n128 r128 e128" 8 6
done
q 128 1 512 "n128 r128 e128" 6 6
q 192 1 512 "z192 r192" 6 6
DV=128 q 192 1 512 "z192v r192v" 6 6
