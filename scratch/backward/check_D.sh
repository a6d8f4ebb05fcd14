[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab ab16
r() { timeout -s KILL 16 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
for v in 128:base128 128:f128 64:base64 64:f64 96:base96 96:f64; do echo $v; ERRORS=1 timeout 8 ./ab check ${v%:*} -x -K4 -k5 ${v#*:} | grep -E "d[QKV]:"; done
r ./ab check 128 -r20 f128 | cut -c1-120
r ./ab check 64 -r20 f64 | cut -c1-120
r ./ab check 96 -r20 f64 | cut -c1-120
r ./ab16 check 128 -x -k9 fh | cut -c1-120
r ./ab check 256 -x -k5 fp | cut -c1-120
r ./ab check 192 -x -k5 fp | cut -c1-120
r ./ab check 128 -r10 -K22 o128 | cut -c1-120
echo t=$SECONDS
