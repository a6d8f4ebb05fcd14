chmod +x bench; B=$PWD/bench
s() { ONLY="$2" TRACE=1 timeout -s KILL $3 $B stress $1 2> trace_$$ || echo "stress $1 $2 failed $? at: $(tail -1 trace_$$)"; }
s 64 "d64 few64b *three" 12
s 64 "dt few64 *two" 12
s 96 "d96b d96" 8
s 192 "d192" 8
DV=128 s 192 "d192v few192v" 8
s 128 "d128 few128 *128" 10
for d in 64 128; do timeout -s KILL 10 $B features $d 1024 1 2>&1 | cut -c1-400; done
timeout 12 compute-sanitizer --tool memcheck $B small 64 "d64 dt" 2>&1 | tail -1
timeout 12 compute-sanitizer --tool memcheck $B small 96 "d96" 2>&1 | tail -1
for v in three two d64 dt; do echo "racecheck $v"; timeout 12 compute-sanitizer --tool racecheck $B small 64 "$v" 2>&1 | grep -v "^=========     " | tail -4 | cut -c1-200; done
