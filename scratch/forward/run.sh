chmod +x bench pages_new pages_old; B=$PWD/bench
for d in 128 64 256; do timeout 8 $B stress $d || echo "failed $?"; done
echo "== pages: checksums and times"; timeout 10 ./pages_old > po 2>&1 || echo "failed $?"; timeout 10 ./pages_new > pn 2>&1 || echo "failed $?"; paste -d'#' po pn | sed 's/#/  ##  /' | head -40
echo "== cells D 128"; timeout 10 $B cells 128 "c128 cs128" 512 16384 21 1 || echo "failed $?"
echo "== cells D 256"; timeout 6 $B cells 256 "c256" 512 16384 11 1 || echo "failed $?"
echo "== cells D 64"; timeout 6 $B cells 64 "c64 c64t" 512 16384 11 1 || echo "failed $?"
echo "== features"; timeout 8 $B features 128 8192 3 || echo "failed $?"; timeout 6 $B features 64 8192 3 || echo "failed $?"; timeout 6 $B features 128 1024 9 || echo "failed $?"
