chmod +x d e
timeout 9 ./d turns
timeout 7 ./d hot
timeout 6 ./e
