[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab
r() { [ $SECONDS -gt 28 ] && { echo "no time: $*"; return; }; timeout -s KILL 9 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab trace 128 -s16384 tr4 tr4_1
r ./ab bench 128 -s2048,4096,8192,16384 -r7 base128 div v3lf v3slf v4_4 v4turn1 v4turn3 v5p v5d v5pd v5pd4
r ./ab mix 128 -s16384 -t5 base128 div v3lf v4_4 v4turn1 v4turn3 v5p v5pd v5pd4
r ./ab bench 128 -c -s512,2048,4096,16384 -r7 base128 div v3lf v3slf v4_4 v4turn1 v4turn3 v5p v5pd v5pd4
r ./ab mix 128 -c -s16384 -t4 base128 v3lf v4_4 v4turn3 v5p v5pd
r ./ab mix 128 -s4096 -t2 base128 div v4_4 v5pd
r ./ab bench 128 -c -s512,1024 -r21 base128 div v3lf v4_4 v5pd
