chmod +x a
timeout 60 ./a check q6 q5 q4 p3 p9 bp3 bp9 p0 p1 m0 s0 mt9 mt10 mt11 mt12 bmt9
