gunzip -kf *.gz 2>/dev/null; chmod +x checkA checkC
timeout 45 ./checkC
timeout 40 ./checkA
