gunzip -kf *.gz 2>/dev/null; chmod +x pairB pairC progA progS
timeout 7 ./pairB
timeout 9 ./pairC
timeout 12 ./progA
timeout 3 ./progS
