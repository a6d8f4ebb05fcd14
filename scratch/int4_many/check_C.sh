gunzip -kf rc.gz 2>/dev/null; chmod +x rc
timeout 64 ./rc check; echo "rc $?"
timeout 24 compute-sanitizer --tool memcheck ./rc san 2>&1 | tail -5; echo "rc $?"
