chmod +x bench; B=$PWD/bench
s() { ONLY="$2" TRACE=1 timeout -s KILL $3 $B stress $1 2> trace_$$ || echo "stress $1 $2 failed $? at: $(tail -1 trace_$$)"; }
s 128 "b128 h128" 14
s 128 "d96 d962 dq64" 14
s 128 "dq80 dq96 d80" 14
s 128 "m160 n176 m176 n144" 16
s 256 "b256 h256 hh256" 14
s 256 "k256 ks256 kos256 ksh256" 14
