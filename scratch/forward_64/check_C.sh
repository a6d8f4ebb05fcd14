chmod +x bench bench16; B=$PWD/bench
s() { ONLY="$2" TRACE=1 timeout -s KILL $3 ${4:-$B} stress $1 2> trace_$$ || echo "stress $1 $2 failed $? at: $(tail -1 trace_$$)"; }
s 64 "*three r8 r2 r1" 12
s 64 "*two rt" 10
s 64 "r2a r2t r3a r4a r1a r6a" 15
s 64 "r8g r2g r8j r2j" 12
s 64 "r8 r2 rt" 12 $PWD/bench16
s 96 "*96b z96 r96 e96" 12
s 192 "*192 z192 r192 e192" 12
DV=128 s 192 "*192v z192v r192v e192v" 12
s 128 "*128 n128 r128 e128" 12
timeout 15 compute-sanitizer --tool memcheck $B small 64 "r8 r2 r2a rt" 2>&1 | tail -2
timeout 15 compute-sanitizer --tool racecheck $B small 64 "r8 r2 rt" 2>&1 | tail -2
