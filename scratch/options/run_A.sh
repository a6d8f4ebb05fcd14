chmod +x bench; B=$PWD/bench
f() { timeout 4 $B features $1 $2 $3 || echo "failed $?"; }
f 128 4096 9; f 64 4096 9; f 128 1024 9; f 64 1024 9; f 128 16384 3; f 64 16384 3
