chmod +x b
timeout 80 ./b check w16 w8 w8d w4 w24h w32h u0 u5 u8 u6 u1 u4 uh t5 bu0 bu5 bu6 bu8 u5_2 u5_4 u0_2 u0_4 y8
