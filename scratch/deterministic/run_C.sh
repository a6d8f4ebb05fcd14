gunzip -f *.gz 2>/dev/null; chmod +x det deth
r() { timeout -s KILL 10 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
V=vcp; timeout -s KILL 6 ./det check 192 -d -r5 vcp || { echo "vcp hangs: $?"; V=v0p; }
r ./det bench 192 cf few 7 v0p:f: v0p:d: $V:f: $V:d: vb:d: $V:d:WAVES=0 $V:d:WAVES=1 $V:d:FREE=1
r ./det bench 256 cf few 7 v0p:f: v0p:d: $V:f: $V:d: $V:d:WAVES=0 $V:d:WAVES=1
