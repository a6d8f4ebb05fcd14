[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab
r() { timeout -s KILL 30 "$@" 2>&1 | cut -c1-140; local rc=${PIPESTATUS[0]}; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab check 128 -x -r5 v4_4
r ./ab check 128 -x -r2 v5pd v5pd4 v3lf
r ./ab check 128 -x -r1 -k12 v4turn1 v4turn3
ERRORS=1 timeout 8 ./ab check 128 -x -K4 -k5 base128 v4_4 | grep -E "d[QKV]:"
