chmod +x ab
r() { timeout -s KILL 8 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab bench 128 -n -c -s4096,512 -r7 -o.cabd v128 base128 all128@abd
r ./ab bench 64 -n -c -s4096,512 -r7 -o.cabd v64 base64 all64@abd
r ./ab bench 96 -n -c -s4096 -r5 -o.cabd v96 port@cabd
r ./ab bench 256 -n -c -s4096 -r5 -o.cabd v256 port@cabd
r ./ab bench 192 -v128 -n -c -s4096 -r5 -o.cabd v192128 port@cabd
r ./ab bench 128 -n -s4096 -r5 -o.cabd v128 all128@abd
r ./ab bench 64 -n -s4096 -r5 -o.cabd v64 all64@abd
r ./ab bench 128 -n -c -s4096 -r5 -o.f w128 base128
r ./ab bench 64 -n -c -s4096 -r5 -o.f w64 base64
r ./ab bench 96 -n -c -s4096 -r5 -o.f w96 port@f
