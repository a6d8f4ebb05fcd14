[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab
r() { [ $SECONDS -gt 28 ] && { echo "no time: $*"; return; }; timeout -s KILL 9 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab trace 128 -s16384 trace tr1
r ./ab bench 128 -s2048,4096,8192,16384 -r7 base128 div turn1 turn3 turn4 turn5 es2 nh
r ./ab mix 128 -s16384 -t4 base128 div turn1 turn3 es2
r ./ab mix 128 -c -s16384 -t3 base128 turn1 es2
r ./ab bench 64 -s2048,4096,8192,16384 -r7 b_all c2_all
r ./ab bench 64 -c -s512,2048,4096,16384 -r7 b_all c2_all
r ./ab bench 128 -c -s512,2048,16384 -r7 base128 div turn1 turn3 turn4 es2 nh
r ./ab mix 64 -s16384 -t2 b_all c2_all
r ./ab bench 256 -s2048,8192 -r5 b_all c2_all
r ./ab bench 256 -c -s2048,8192 -r5 b_all c2_all
r ./ab mix 128 -s4096 -t2 base128 div
r ./ab trace 128 -s4096 trace
