chmod +x bench; B=$PWD/bench
echo "== each against a reference: nothing but WRONG lines count"
for s in 512 1024; do for m in 0 1; do
timeout 5 $B queues 128 $m $s "p128 x128 nc128 h128 h0128" 1 1 1 1 2>&1 | grep -i "wrong\|error\|fail" 
timeout 5 $B queues 64 $m $s "p64t p64tn x64t pf64t pk64t pfn64t p64 p64n x64n p64jn" 1 1 1 1 2>&1 | grep -i "wrong\|error\|fail"
timeout 5 $B queues 256 $m $s "p256 x256 kq256 kqo256" 1 1 1 1 2>&1 | grep -i "wrong\|error\|fail"
done; done
for d in 128 64 256; do timeout 20 $B stress $d || echo "stress $d failed $?"; done
