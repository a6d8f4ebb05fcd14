[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab
r() { timeout -s KILL 30 "$@" 2>&1 | cut -c1-140; local rc=${PIPESTATUS[0]}; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab check 128 -x -r10 div
r ./ab check 64 -x -r10 c2_all
r ./ab check 96 -x -r5 c2_all
r ./ab check 128 -x -r2 -k12 turn1 es2
timeout 40 compute-sanitizer ./ab check 128 -x -r1 -k4 div 2>&1 | tail -3
