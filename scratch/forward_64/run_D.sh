chmod +x bench; B=$PWD/bench
nvidia-smi --query-gpu=clocks.sm,power.draw,temperature.gpu --format=csv,noheader
q() { timeout -s KILL 5 $B queues $1 $2 $3 "$4" ${5:-10} ${6:-4} 1 0 2>&1 | sed 's/([0-9.-]*)//g; s/, queues of [0-9]* ms//; s/ [0-9]* MHz//g'; }
q 64 1 8192 "three join dt d64" 10 5
q 64 1 16384 "join dt d64" 14 5
q 64 1 4096 "three dt d64" 10 5
q 64 0 4096 "join d64" 10 5
q 64 0 8192 "join d64" 12 4
q 64 0 16384 "join d64" 20 4
q 64 0 512 "two dt d64" 8 6
q 64 0 1024 "dt d64" 8 6
q 64 1 2048 "three dt" 8 5
q 64 1 512 "dt" 8 5
q 96 1 2048 "96a d96 d96b" 8 5
q 96 0 2048 "96a d96 d96b" 8 5
q 128 0 4096 "d128" 8 6
q 128 1 512 "d128" 8 6
