chmod +x bench pages_*; B=$PWD/bench
for d in 128 64 256 96 192; do SKIP=1 timeout -s KILL 25 $B stress $d || echo "stress $d failed $?"; done
for d in 128 64; do timeout -s KILL 12 $B features $d 1024 1 || echo "features $d failed $?"; done
for v in old new; do timeout -s KILL 12 ./pages_$v > o_$v 2>&1 || echo "pages $v failed $?"; done
paste -d'|' o_old o_new | sed 's/ sum/ /g' | head -40
timeout 15 compute-sanitizer --tool memcheck $B small 64 "z64t z64n z64jn few64 few64b zf64t" 2>&1 | tail -2
timeout 15 compute-sanitizer --tool memcheck $B small 128 "z128 few128" 2>&1 | tail -2
