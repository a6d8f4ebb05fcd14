[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab ab16
r() { [ $SECONDS -gt 29 ] && { echo "no time: $*"; return; }; timeout -s KILL 9 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
a="base128 e128 sa3h c128 d2 vf vf3"
r ./ab bench 128 -r7 $a
r ./ab bench 128 -c -r7 $a
r ./ab bench 64 -r7 base64 d64 wt64 c64
r ./ab bench 64 -c -r7 base64 d64 wt64 c64
r ./ab bench 96 -r7 base96 d96 wt64 c64
r ./ab bench 96 -c -r7 base96 d96 wt64 c64
r ./ab bench 64 -d -r3 base64 c64
r ./ab bench 64 -d -c -r3 base64 c64
r ./ab bench 96 -d -r3 base96 c64
r ./ab bench 128 -d -r3 base128 c128
r ./ab bench 256 -r5 base256 ph phd
r ./ab bench 256 -c -r5 base256 ph phd
r ./ab bench 192 -r3 base256 ph phd
r ./ab bench 192 -c -r3 base256 ph phd
r ./ab16 bench 64 -r5 bh ch
r ./ab16 bench 128 -r5 bh ch
r ./ab16 bench 96 -c -r5 bh ch
r ./ab queue 128 -s16384 -t1.2 base128 c128
r ./ab queue 64 -s16384 -t1.2 base64 c64
r ./ab bench 128 -r7 base128 c128
r ./ab bench 128 -c -r7 base128 c128
