chmod +x c
timeout 14 ./c hot
timeout 15 ./c turns
