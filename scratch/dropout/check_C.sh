chmod +x bench ab
for d in 128 64; do timeout 40 ./bench stressf $d || echo "stress $d failed $?"; done
for d in 128 64; do timeout -s KILL 20 ./ab check $d -x -q -od l$d 2>&1 | cut -c1-160 | head -14; done; echo "t=$SECONDS"
for d in 128 64; do timeout 20 ./bench repeat $d 1000; done; echo "t=$SECONDS"
for d in 128 64; do timeout -s KILL 15 ./ab check $d -x -q -k2 -r1000 -od l$d 2>&1 | cut -c1-160 | head -14; done; echo "t=$SECONDS"
