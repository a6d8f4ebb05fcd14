chmod +x c
timeout 80 ./c check c0 c1 c2 c3 c4 c5 c6 c7 c8 c9 c10 ch cy5 d5 e0 e5 e8 g0 g5 g6 g8 bc5 bc6 c5_2 c8_2
