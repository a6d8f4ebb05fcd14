gunzip -kf *.gz 2>/dev/null; chmod +x pair* prog*
timeout 4 ./progH
timeout 7 ./pairH
timeout 2 ./pairH64
