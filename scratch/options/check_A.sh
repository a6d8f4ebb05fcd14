chmod +x bench; B=$PWD/bench
for d in 128 64; do timeout 30 $B stressf $d || echo "stress $d failed $?"; timeout 20 $B against $d || echo "against $d failed $?"; done
