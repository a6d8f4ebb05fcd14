chmod +x ab
r() { timeout -s KILL 7 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab bench 128 -n -c -s4096,512 -r7 -o.cabdf m128 q128 biasgrad@b
r ./ab bench 64 -n -c -s4096,512 -r7 -o.cabdf m64 q64 biasgrad@b
r ./ab bench 96 -n -c -s4096,512 -r5 -o.cabdf q96
r ./ab bench 256 -n -c -s4096,512 -r5 -o.cabd m256
r ./ab bench 192 -v128 -n -c -s4096 -r5 -o.cabd m192
r ./ab bench 128 -n -s512,4096 -r5 -o.cabdf m128 q128
r ./ab bench 64 -n -s512,4096 -r5 -o.cabdf m64 q64
r ./ab bench 128 -n -c -s16384 -r3 -o.cabd m128 q128
