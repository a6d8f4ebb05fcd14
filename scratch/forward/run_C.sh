chmod +x bench; B=$PWD/bench
nvidia-smi --query-gpu=name,clocks.sm,power.draw,temperature.gpu --format=csv,noheader
q() { timeout -s KILL 3 $B queues $1 $2 $3 "$4" ${5:-12} ${6:-5} 1 0 2>&1 | sed 's/([0-9.-]*)//g; s/, queues of [0-9]* ms//; s/ [0-9]* MHz//g'; }
q 64 1 512 "z64t"
q 128 0 512 "z128 nc128"
q 64 1 1024 "z64t z64t@132"
q 128 1 512 "z128 nc128"
q 128 1 1024 "z128"
q 128 0 1024 "z128"
q 64 0 512 "z64 z64n"
q 64 0 1024 "z64 z64n"
q 64 1 2048 "z64 z64n z64t"
q 256 0 512 "z256 kq256 kqo256"
q 256 1 512 "z256 kq256 kqo256"
q 256 1 1024 "z256 kq256 kqo256"
q 64 0 4096 "z64jn" 20 4
q 64 1 16384 "z64jn" 40 3
q 128 1 16384 "z128" 40 3
q 64 1 512 "z64t zf64t zk64t"
q 64 1 1024 "z64t zf64t zk64t"
q 128 1 512 "z128 nc128 h128 h0128"
q 128 1 1024 "z128 nc128 h128 h0128"
q 256 0 1024 "z256 kqo256"
q 128 0 4096 "z128" 20 4
q 64 0 16384 "z64jn" 40 3
