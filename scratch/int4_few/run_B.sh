chmod +x b
timeout 14 ./b turns
timeout 10 ./b hot
timeout 5 ./b line
