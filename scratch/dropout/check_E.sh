chmod +x pf bz ab
timeout 20 ./pf | sort | uniq -c | cut -c1-120
for d in 64 128; do ONLY=,all, timeout 20 ./bz stressf $d | cut -c1-300; done
for d in 96 192 256; do timeout -s KILL 15 ./ab check $d -q -od port 2>&1 | cut -c1-160 | head -5; done
for d in 64 128; do timeout -s KILL 15 ./ab check $d -y -q -od x${d}a 2>&1 | cut -c1-160 | head -5; done
timeout -s KILL 15 ./ab check 256 -x -q -od x256 2>&1 | cut -c1-160 | head -5; timeout -s KILL 15 ./ab check 192 -v128 -x -q -od x192v 2>&1 | cut -c1-160 | head -5
echo "t=$SECONDS"
