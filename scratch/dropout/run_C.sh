chmod +x bench ab; B=$PWD/bench
f() { timeout 6 $B features $1 $2 $3 2>&1 | grep -v "^ *$\|none\|alibi\|cap \|bias\|row\|  all" || echo "failed $?"; }
f 128 4096 9; f 64 4096 9; f 128 512 9; f 64 512 9; f 64 1024 9; f 64 2048 9
for d in 128 64; do timeout -s KILL 6 ./ab bench $d -c -s4096,512 -r7 -o.d q$d n$d l$d; done;  for d in 128 64; do timeout -s KILL 6 ./ab bench $d -s4096 -r7 -o.d q$d l$d; done; f 128 16384 3; f 64 16384 3
echo "t=$SECONDS"
