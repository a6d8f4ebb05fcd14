gunzip -kf wb.gz 2>/dev/null; chmod +x wb
timeout 80 ./wb check; echo "rc $?"
