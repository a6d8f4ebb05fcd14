[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab
r() { [ $SECONDS -gt 14 ] && { echo "no time: $*"; return; }; timeout -s KILL 7 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab bench 128 -s2048,4096,8192,16384 -r7 b_all head on v6f v6d v6dd4 v6p v6fd n5
r ./ab mix 128 -s16384 -t4 b_all head v6f v6d v6fd
r ./ab bench 128 -c -s512,2048,16384 -r7 b_all head v6f v6d v6dd4 v6p v6fd
r ./ab mix 128 -c -s16384 -t2.5 b_all v6f v6d
r ./ab bench 64 -s512,1024,4096,16384 -r7 b_all on
