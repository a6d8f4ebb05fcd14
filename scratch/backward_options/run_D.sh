chmod +x ab
r() { timeout -s KILL 6 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab bench 128 -n -c -s4096,512 -r7 -o.cabdf q128
r ./ab bench 64 -n -c -s4096,512 -r7 -o.cabdf q64
r ./ab bench 96 -n -c -s4096 -r5 -o.cabdf q96
r ./ab bench 256 -n -c -s4096 -r5 -o.cabd q256
r ./ab bench 128 -n -s4096 -r5 -o.cabdf q128
r ./ab bench 64 -n -s4096 -r5 -o.cabdf q64
