chmod +x bench benchh; B=$PWD/bench
for d in 128 64; do for b in bench benchh; do timeout 20 ./$b stressf $d || { echo "$b stress $d failed $?"; for v in drawers rowmma rowmma2c small small2c float; do echo $v; ONLY=,$v, timeout 3 ./$b stressf $d; done; }; timeout 10 ./$b against $d || echo "$b against $d failed $?"; done; done
