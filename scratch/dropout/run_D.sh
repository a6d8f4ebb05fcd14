chmod +x bench ab; B=$PWD/bench
for d in 128 64; do timeout -s KILL 6 ./ab bench $d -c -s4096,512 -r9 -o.d l$d v$d w$d; timeout -s KILL 6 ./ab bench $d -s4096 -r9 -o.d l$d v$d w$d; done
f() { timeout 6 $B features $1 $2 $3 2>&1 | grep -v "^ *$\|none\|alibi\|cap \|bias\|row\|  all" || echo "failed $?"; }
f 64 4096 9; f 128 4096 9; f 64 512 7
echo "t=$SECONDS"
