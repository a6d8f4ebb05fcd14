gunzip -kf *.gz 2>/dev/null; chmod +x checkD
timeout 85 ./checkD
