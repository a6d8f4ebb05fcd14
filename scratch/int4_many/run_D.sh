gunzip -kf wd.gz 2>/dev/null; chmod +x wd
timeout 16 ./wd time; echo "rc $?"
