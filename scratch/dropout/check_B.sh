chmod +x bench ab
for d in 128 64; do timeout 60 ./bench stressf $d || echo "stress $d failed $?"; done
for d in 128 64; do for v in n m; do timeout -s KILL 20 ./ab check $d -x -q -od $v$d 2>&1 | cut -c1-160 | head -14; done; done; echo "t=$SECONDS"
