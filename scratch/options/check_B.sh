chmod +x bench; B=$PWD/bench
for d in 64 128; do timeout 40 $B stressf $d || echo "stress $d failed $?"; timeout 20 $B against $d || echo "against $d failed $?"; done
