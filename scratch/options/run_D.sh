set -o pipefail
chmod +x bench; B=$PWD/bench
f() { KINDS=$1 timeout 4 $B features $2 $3 $4 | grep "x[0-9]\|of plain" || echo "failed $?"; }
f ,4, 64 4096 9; f ,4, 64 2048 9; f ,4, 64 1024 9; f ,4, 64 512 9; f ,1,64, 64 8192 5; f ,1,64, 64 4096 7; f ,4, 64 16384 3
