chmod +x ab ab16
r() { timeout -s KILL 25 "$@" 2>&1 | cut -c1-130 | head -12; echo "t=$SECONDS"; }
r ./ab check 128 -n -r5 -o.acbd all128
r ./ab check 64 -n -r5 -o.acbd all64
r ./ab check 128 -x -n -r5 -od d128_2 d128_p
r ./ab check 64 -x -n -r5 -od d64_2 d64_p
r ./ab check 128 -r2 -k6 -x -oacbd base128
r ./ab16 check 128 -n -r3 -oacbd f128
