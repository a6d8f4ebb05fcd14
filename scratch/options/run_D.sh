chmod +x bench; B=$PWD/bench
f() { timeout 3 $B features $1 $2 $3 || echo "failed $?"; }
f 128 4096 7; f 64 4096 5; f 64 2048 7; f 64 512 9; f 64 1024 9; f 64 16384 2; f 128 512 9; f 128 16384 2
