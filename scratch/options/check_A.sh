chmod +x bench; B=$PWD/bench
for d in 128 64; do timeout 25 $B stressf $d || echo "stress $d failed $?"; timeout 15 $B against $d || echo "against $d failed $?"; done
