chmod +x bench benchh ab
for d in 128 64; do for b in bench benchh; do timeout 30 ./$b stressf $d || echo "$b stress $d failed $?"; done; done
for x in 128:v128 64:v64 128:w128 64:w64 96:x96 256:v256; do d=${x%%:*}; timeout -s KILL 15 ./ab check $d -x -q -od ${x#*:} 2>&1 | cut -c1-160 | head -9; done; timeout -s KILL 15 ./ab check 192 -v128 -x -q -od v192 2>&1 | cut -c1-160 | head -9; echo "t=$SECONDS"
for d in 128 64; do timeout 20 ./benchh repeat $d 1000 | sort | uniq -c | head -12; timeout -s KILL 15 ./ab check $d -x -q -k2 -r1000 -od v$d 2>&1 | cut -c1-160 | head -14; done; echo "t=$SECONDS"
