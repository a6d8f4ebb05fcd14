chmod +x bench; B=$PWD/bench
nvidia-smi --query-gpu=name,clocks.sm,power.draw,temperature.gpu --format=csv,noheader
q() { timeout -s KILL 3 $B queues $1 $2 $3 "$4" ${5:-12} ${6:-5} 1 0 2>&1 | sed 's/([0-9.-]*)//g; s/, queues of [0-9]* ms//; s/ [0-9]* MHz//g'; }
q 64 1 512 "d64t"
q 64 1 1024 "d64t d64t@132"
q 128 1 16384 "d128" 40 4
q 128 0 4096 "d128" 20 5
q 64 0 4096 "d64j" 20 5
q 64 1 16384 "d64j" 40 4
q 128 0 512 "d128"
q 128 1 512 "d128"
q 64 0 1024 "d64"
q 256 1 512 "d256"
q 256 0 4096 "d256" 20 5
