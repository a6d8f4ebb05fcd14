chmod +x ab
r() { timeout -s KILL 20 "$@" 2>&1 | cut -c1-130 | head -12; echo "t=$SECONDS"; }
r ./ab check 256 -x -q -n -oabcd. v256
r ./ab check 192 -v128 -x -q -n -oabcd v192128
r ./ab check 96 -x -q -n -oabcd v96
r ./ab check 128 -x -q -n -oabcd v128
r ./ab check 64 -x -q -n -oabcd v64
r ./ab check 128 -y -q -n -r4 -obd v128
r ./ab check 64 -y -q -n -r4 -obd v64
r ./ab check 128 -x -q -n -of w128
r ./ab check 64 -x -q -n -of w64
r ./ab check 96 -x -q -n -of w96
