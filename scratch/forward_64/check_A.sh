chmod +x bench; B=$PWD/bench
s() { ONLY="$2" TRACE=1 timeout -s KILL $3 $B stress $1 2> trace_$$ || echo "stress $1 $2 failed $? at: $(tail -1 trace_$$)"; }
s 64 "*three o on oe" 20
s 64 "e one og oeg" 20
s 64 "oj onj oje" 20
s 96 "*96b n96b o96 o96b o96j" 20
s 192 "*192 o192" 12
DV=128 s 192 "*192v o192v" 12
