chmod +x a
timeout 60 ./a check r0 r1 r4 r5 r6 r8 rh rw p0 p5 p6 ph pw n0 n1 n4 n5 n6 n8 nh n9 n10 n5_2 n5_4 bn5
