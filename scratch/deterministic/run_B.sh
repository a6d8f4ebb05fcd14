gunzip -f *.gz 2>/dev/null; chmod +x det
r() { timeout -s KILL 9 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
echo "cons0: consumers of other calls, the loading warp in order; prod0: the loading warp of other calls; turn0: no turns counted; both0: nothing in order. All but v0 wrong"
r ./det bench 192 cf few 7 v0:f: v0:d:  turn0:d: cons0:d: cons0t:d: prod0:d: both0:d: both0:d:FREE=1
