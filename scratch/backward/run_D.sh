[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab ab16
r() { [ $SECONDS -gt 24 ] && { echo "no time: $*"; return; }; timeout -s KILL 9 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
for i in 1 2; do
r ./ab bench 128 -r9 base128 c128 f128
r ./ab bench 128 -c -r9 base128 c128 f128
r ./ab bench 64 -r9 base64 c64 f64
r ./ab bench 64 -c -r9 base64 c64 f64
r ./ab bench 96 -r7 base96 d96 f64
r ./ab bench 96 -c -r7 base96 d96 f64
r ./ab bench 256 -r3 base256 fp
done
r ./ab queue 128 -c -s16384 -t1.2 base128 f128
r ./ab queue 64 -c -s16384 -t1.2 base64 f64
r ./ab bench 64 -d -r5 base64 f64
r ./ab bench 128 -d -r5 base128 c128 o128
r ./ab bench 128 -d -c -r5 base128 c128 o128
