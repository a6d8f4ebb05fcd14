chmod +x bench; B=$PWD/bench
timeout 8 $B features 128 4096 9 || echo "failed $?"
timeout 8 $B features 64 4096 7 || echo "failed $?"
timeout 6 $B features 128 512 11 || echo "failed $?"
timeout 6 $B features 64 512 11 || echo "failed $?"
timeout 6 $B features 64 16384 3 || echo "failed $?"
