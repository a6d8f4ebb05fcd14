chmod +x bench ab
for d in 128 64; do timeout 40 ./bench stressf $d || echo "stress $d failed $?"; done
for d in 128 64; do timeout -s KILL 20 ./ab check $d -x -q -od n$d 2>&1 | cut -c1-160 | head -14; timeout -s KILL 20 ./ab check $d -x -q -n -od q$d 2>&1 | cut -c1-160 | head -14;  done; echo "t=$SECONDS"
