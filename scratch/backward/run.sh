gunzip -f *.gz 2>/dev/null; chmod +x ab ab16
r() { [ $SECONDS -gt 42 ] && { echo "no time: $*"; return; }; timeout -s KILL 12 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab check 128 -r1000 x
r ./ab check 64 -r1000 x64
r ./ab check 96 -r1000 x96
for d in 64 96 128; do r ./ab16 check $d -r50 xf; done
r ./ab bench 128 -r7 base rkh x
r ./ab bench 128 -c -r7 base rkh x
r ./ab bench 64 -r7 base rp64 x64
r ./ab bench 64 -c -r7 base rp64 x64
r ./ab bench 96 -r5 base96 x96
r ./ab bench 96 -c -r5 base96 x96
r ./ab bench 128 -d -r5 base x
r ./ab bench 128 -d -c -r5 base x
r ./ab bench 64 -d -r5 base x64
r ./ab bench 64 -d -c -r5 base x64
r ./ab bench 96 -d -r5 base96 x96
r ./ab queue 128 -s8192 -t2 base x
r ./ab queue 64 -s8192 -t2 base x64
r ./ab bench 128 -r7 base x
r ./ab bench 64 -r7 base x64
