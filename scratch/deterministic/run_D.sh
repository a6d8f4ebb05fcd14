gunzip -f det.gz v0p.so.gz vcp.so.gz; chmod +x det
export LIGHT=1
for d in 192 256; do timeout -s KILL 19 ./det against $d 1000 0 v0p vcp || echo "rc $?"; echo "t=$SECONDS"; done
