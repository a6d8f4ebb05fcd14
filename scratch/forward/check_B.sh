chmod +x bench; B=$PWD/bench
s() { ONLY="$2" TRACE=1 timeout -s KILL $3 $B stress $1 2> trace_$$ || echo "stress $1 $2 failed $? at: $(tail -1 trace_$$)"; }
s 256 "b256 kos256 kosh256" 14
s 256 "o256 ho256" 14
