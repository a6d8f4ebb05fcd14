chmod +x ab ab16
r() { timeout -s KILL 12 "$@" 2>&1 | cut -c1-160 | head -14; echo "t=$SECONDS"; }
r ./ab check 128 -x -q -n -odbfca. q128
r ./ab check 64 -x -q -n -odbfca. q64
r ./ab check 96 -x -q -n -odbfca. q96
r ./ab check 256 -x -q -n -obcda. q256
r ./ab16 check 128 -x -q -n -odbfca qh128
r ./ab16 check 64 -x -q -n -odbfca qh64
