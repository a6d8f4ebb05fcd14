gunzip -kf sweep.gz 2>/dev/null; chmod +x sweep
timeout 80 ./sweep check; echo "rc $?"
