chmod +x d
timeout 9 ./d turns
timeout 8 ./d hot
