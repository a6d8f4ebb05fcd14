[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab ab16
r() { timeout -s KILL 40 "$@" 2>&1 | cut -c1-400; local rc=${PIPESTATUS[0]}; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
OPTIONS=04 r ./ab options 128 ob on
OPTIONS=04 r ./ab options 64 ob on
OPTIONS=0 r ./ab options 96 b_all on
OPTIONS=12 r ./ab options 128 ob on
OPTIONS=3 r ./ab options 128 ob on
r ./ab check 128 -r10 on
r ./ab check 64 -r10 on
OPTIONS=0 r ./ab16 options 64 bh hh
r ./ab16 check 128 -x -r2 hh
r ./ab check 128 -x -r2 -k12 v6f v6d
