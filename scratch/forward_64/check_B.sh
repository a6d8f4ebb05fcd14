chmod +x bench; B=$PWD/bench
s() { ONLY="$2" TRACE=1 timeout -s KILL $3 $B stress $1 2> trace_$$ || echo "stress $1 $2 failed $? at: $(tail -1 trace_$$)"; }
s 64 "*three o q h4" 15
s 64 "*two qt" 12
s 64 "h4s h2 h6 h8 h4n" 15
s 64 "h4j y8 y4" 12
s 96 "*96b o96 q96" 12
s 192 "*192 q192" 12
DV=128 s 192 "*192v q192v" 12
s 128 "*128 q128 q128s" 12
