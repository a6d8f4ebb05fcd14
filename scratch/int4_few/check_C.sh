chmod +x c
timeout 85 ./c check x9_8 bx9_8 x3 bx3 x2 bx2 x1 bx1 x6 bx6 x5 bx5 x0 bx0 x8 bx8 x7 bx7 x9_4 bx9_4 x9_2 bx9_2 x2_4 x1_4 x3_4 x6_4 x5_4 x0_4 x2_2 x1_2 x3_2 x6_2 x5_2 x0_2 bx2_4 bx1_4 bx3_4 bx6_4 bx5_4 bx0_4 bx2_2 bx1_2 bx3_2 bx6_2 bx5_2 bx0_2
