gunzip -kf *.gz 2>/dev/null; chmod +x wd wrp
timeout 66 ./wd check; echo "rc $?"
S=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
timeout 22 $S --tool racecheck ./wrp san 2>&1 | tail -6 | cut -c1-200
