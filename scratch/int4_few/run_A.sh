chmod +x a
timeout 5 ./a line
timeout 12 ./a turns
timeout 8 ./a hot
