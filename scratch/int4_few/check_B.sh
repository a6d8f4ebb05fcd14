chmod +x b
timeout 40 ./b check d0 d1 d2 d3 d4 d5 d6 d7 d8
timeout 20 ./b check bd3 bd6 bd4 n6 bn6 n5 n8 n1 n4
timeout 20 ./b check v0_9 v2_9 bv2_9 v2_3 v1_3 bv2_3 v2_11 bv2_11
