gunzip -kf *.gz 2>/dev/null; chmod +x check*
for h in "" 64 256; do timeout 85 ./checkG$h > out$h.log 2>&1 & done
STRIDE=37 timeout 80 compute-sanitizer --tool memcheck ./checkG > san.log 2>&1 &
wait
for h in "" 64 256; do head -c 3000 out$h.log; echo; done; tail -c 1500 san.log
