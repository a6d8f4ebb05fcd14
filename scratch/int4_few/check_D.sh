chmod +x d
timeout 60 ./d check v0 v1 v2 v3 v4 v5 v6 v7 v8 v9 v10 v0_2 v1_2 v3_2 v4_2 v5_2 v6_2 v8_2 v9_2 v0_4 v1_4 v3_4 v4_4 v5_4 v6_4 v8_4 v9_4 bv0 bv1 bv2 bv3 bv4 bv5 bv6 bv7 bv8 bv9 bv10 bv5_4 bv8_4 y5 cy5 cy8
N=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
[ -n "$N" ] && timeout 25 $N --tool memcheck ./d check v5 v0 v8 2>&1 | tail -4
