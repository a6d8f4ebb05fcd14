chmod +x ab ab16
r() { timeout -s KILL 9 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab bench 128 -n -c -s4096 -r7 -o.cabd base128 all128 d128_2@d d128_p@d
r ./ab bench 64 -n -c -s4096 -r7 -o.cabd base64 all64 d64_2@d d64_p@d
r ./ab bench 128 -n -s1024,4096 -r5 -o.cabd base128 all128 d128_2@d d128_p@d
r ./ab bench 128 -n -c -s1024,16384 -r5 -o.cabd base128 all128 d128_2@d d128_p@d
r ./ab bench 64 -n -s1024,4096 -r5 -o.cabd base64 all64 d64_2@d d64_p@d
r ./ab bench 128 -n -c -s4096 -r7 -o.cabd base128 all128 d128_2@d d128_p@d
