gunzip -c bench_c.gz > bench_c; chmod +x bench_c
echo "## check"; timeout 30 ./bench_c check; echo "rc $?"
echo "## time"; timeout 40 ./bench_c time 26; echo "rc $?"
