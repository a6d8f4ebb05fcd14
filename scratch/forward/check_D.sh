chmod +x bench; B=$PWD/bench
s() { ONLY="$2" TRACE=1 timeout -s KILL $3 $B stress $1 2> trace_$$ || echo "stress $1 $2 failed $? at: $(tail -1 trace_$$)"; }
s 64 "d64t" 12
s 64 "d64" 12
s 64 "d64j" 12
s 64 "d64t few64b" 12
s 64 "few64 d64 d64j" 14
s 128 "d128 few128" 14
s 256 "d256" 10
for d in 64 128; do ONLY="$( [ $d = 64 ] && echo '*two *three cap64 ali64' || echo '*128 cap128')" timeout -s KILL 10 $B features $d 1024 1 2>&1 | cut -c1-300 || echo "features $d failed $?"; done
