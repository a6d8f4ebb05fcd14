chmod +x bench; B=$PWD/bench
echo "== each against a reference, fixed rounds too: nothing but WRONG lines count"
for s in 512 1024; do for m in 0 1; do
timeout 5 $B queues 128 $m $s "e128 e128# j128 g128 go128 ts128 gt128 f128 nc128" 1 1 1 1 2>&1 | grep -i "wrong\|error\|fail" 
timeout 5 $B queues 64 $m $s "e64t e64t# s64t ts64t e64 e64# e64j g64 ff64 ff64j nc64 e64t@132# q264t k164t k264t f64t ff64t fs64t fl64t nc64t f64t#" 1 1 1 1 2>&1 | grep -i "wrong\|error\|fail"
timeout 5 $B queues 256 $m $s "u256 u2256 u256# k256 ko256 kp256 ff256 nc256" 1 1 1 1 2>&1 | grep -i "wrong\|error\|fail"
done; done
for d in 128 64 256; do timeout 20 $B stress $d || echo "stress $d failed $?"; done
