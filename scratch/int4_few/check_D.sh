chmod +x d e
timeout 45 ./e check
timeout 40 ./d check xa5 xa3 xa6 xa1 xa8 xa9 xb5 xb3 xb6 xb1 xb8 bxa5 bxb5
