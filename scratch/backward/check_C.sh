[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab ab16
r() { timeout -s KILL $T "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
T=16; r ./ab check 128 -x c128 | cut -c1-120
r ./ab check 64 -x c64 | cut -c1-120
r ./ab check 96 -x c64 | cut -c1-120
r ./ab16 check 128 -x -k14 ch | cut -c1-120
r ./ab16 check 64 -x -k14 ch | cut -c1-120
r ./ab check 64 -r100 -K22 c64 | cut -c1-120
r ./ab check 96 -r100 -K22 c64 | cut -c1-120
r ./ab check 128 -r100 -K22 c128 | cut -c1-120
T=8; r ./ab check 256 -x -K1 -k5 phd c128 | cut -c1-120;  r ./ab check 192 -x -K1 -k5 phd | cut -c1-120
for v in 128 64; do echo "race rcf $v"; timeout -s KILL 10 compute-sanitizer --tool racecheck ./ab check $v -x -K1 -k5 rcf 2>&1 | tail -1; done
echo memcheck; timeout -s KILL 10 compute-sanitizer --tool memcheck ./ab check 128 -x -K1 -k5 c128 2>&1 | tail -2
for v in 128:base128 128:c128 64:base64 64:c64 96:base96 96:c64; do echo $v; ERRORS=1 timeout 8 ./ab check ${v%:*} -x -K4 -k5 ${v#*:} | grep -E "d[QKV]:"; done
echo t=$SECONDS
