gunzip -f *.gz 2>/dev/null; chmod +x det
r() { timeout -s KILL 9 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
V=v5; P=v5p; timeout -s KILL 6 ./det check 192 -d -r5 v5 || { echo "v5 hangs: $?"; V=v0; P=; }
r ./det bench 192 cf few 7 v0:f: v0:d: $V:d: vnw:d: vnp:d: vnp:d:FREE=1 v0:d:FREE=1 v0:d:WAVES=0 $V:d:WAVES=0 v0:d:WAVES=1
[ -n "$P" ] && r ./det bench 256 c few 5 v5p:f: v5p:d: v5p:d:WAVES=0
