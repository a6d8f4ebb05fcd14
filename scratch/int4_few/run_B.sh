chmod +x b
timeout 14 ./b hot
timeout 14 ./b turns
timeout 4 ./b depth
