gunzip -f *.gz; chmod +x ab ab16 bg bg16
r() { timeout -s KILL ${L:-5} "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
L=14 r ./bg bench bgold bgnew1 bgnew2 mall128_64_256
r ./ab bench 64 -n -c -s4096,512 -r9 -o.bB mall128_64_256@.b eall@bB
r ./ab bench 128 -n -c -s4096,512 -r9 -o.bB mall128_64_256@.b eall@bB
r ./ab bench 256 -n -c -s4096 -r7 -o.bB mall128_64_256@. eall@bB
r ./ab bench 64 -n -s4096 -r7 -o.bB mall128_64_256@.b eall@bB
