[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab ab16
r() { timeout -s KILL 30 "$@" 2>&1 | cut -c1-400; local rc=${PIPESTATUS[0]}; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab options 128 ob on
r ./ab options 64 ob on
OPTIONS=0 r ./ab options 96 b_all head
OPTIONS=0 r ./ab16 options 128 bh hh
OPTIONS=0 r ./ab16 options 64 bh hh
r ./ab check 128 -r20 head
r ./ab check 64 -r20 head
r ./ab check 96 -x -r5 head
r ./ab16 check 128 -x -r3 hh
r ./ab check 256 -x -k9 head
r ./ab check 128 -x -K29 -k35 -r2 r1 r2
OPTIONS=0 timeout 30 compute-sanitizer --tool memcheck ./ab options 128 ob on 2>&1 | tail -3 | cut -c1-300
echo t=$SECONDS
