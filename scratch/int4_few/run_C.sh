chmod +x c
timeout 14 ./c turns
timeout 11 ./c hot
timeout 4 ./c line
