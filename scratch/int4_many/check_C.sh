gunzip -kf wc.gz 2>/dev/null; chmod +x wc
timeout 40 ./wc check; echo "rc $?"
S=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
timeout 25 $S --tool memcheck ./wc san 2>&1 | tail -8
timeout 25 $S --tool racecheck ./wc san 2>&1 | tail -8
