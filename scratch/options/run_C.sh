set -o pipefail
chmod +x bench; B=$PWD/bench
f() { KINDS=$1 timeout 4 $B features $2 $3 $4 | grep "x[0-9]\|of plain" || echo "failed $?"; }
f ,1,64, 64 4096 9; f ,4,128, 64 4096 9; f ,16, 64 4096 7; f ,32, 64 4096 5
f ,1,64, 128 4096 9; f ,32, 128 4096 9
for s in 512 1024 2048; do f ,1,64, 64 $s 9; f ,4,128, 64 $s 9; done
f ,1,64, 64 16384 3; f ,4,128, 64 16384 3; f ,1,64, 128 512 9; f ,16, 64 1024 9; f ,16, 64 2048 9; f ,32, 64 1024 5
