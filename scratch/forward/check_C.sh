chmod +x bench; B=$PWD/bench
s() { ONLY="$2" TRACE=1 timeout -s KILL $3 $B stress $1 2> trace_$$ || echo "stress $1 $2 failed $? at: $(tail -1 trace_$$)"; }
timeout -s KILL 25 $B pairs || echo "pairs failed $?"
s 128 "b128 pair few128" 14
s 256 "b256 n256" 12
s 256 "few256 nfew256" 12
for t in memcheck synccheck; do timeout -s KILL 14 compute-sanitizer --tool $t $B small 2>&1 | tail -4; done
