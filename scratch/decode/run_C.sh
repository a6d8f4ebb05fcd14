gunzip -kf *.gz 2>/dev/null; chmod +x pair* progS
timeout 14 ./pairG
timeout 5 ./pairG64
timeout 6 ./pairG256
timeout 3 ./progS
