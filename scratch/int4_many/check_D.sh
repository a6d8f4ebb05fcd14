gunzip -kf rd.gz 2>/dev/null; chmod +x rd
timeout 64 ./rd check; echo "rc $?"
timeout 20 compute-sanitizer --tool memcheck ./rd san 2>&1 | tail -3; echo "rc $?"
