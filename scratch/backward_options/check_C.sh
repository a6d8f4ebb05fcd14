chmod +x ab ab16
r() { timeout -s KILL 20 "$@" 2>&1 | cut -c1-160 | head -14; echo "t=$SECONDS"; }
r ./ab check 128 -x -q -n -odbfca. q128
r ./ab check 64 -x -q -n -odbfca. q64
r ./ab check 128 -x -q -n -odbfca. m128
r ./ab check 64 -x -q -n -odbfca. m64
r ./ab check 96 -x -q -n -odbfca. q96
r ./ab check 256 -x -q -n -obcda m256
r ./ab check 192 -v128 -x -q -n -obcda m192
r ./ab16 check 128 -x -q -n -odbfca h128
r ./ab16 check 64 -x -q -n -odbfca h64
r ./ab16 check 256 -x -q -n -obcda h256
r ./ab check 128 -y -q -n -r4 -odfca m128
r ./ab check 64 -y -q -n -r4 -odfca m64
timeout -s KILL 20 compute-sanitizer --tool memcheck ./ab check 128 -x -q -n -k4 -odfb m128 2>&1 | tail -4
timeout -s KILL 20 compute-sanitizer --tool memcheck ./ab check 64 -x -q -n -k4 -odfb m64 2>&1 | tail -4
