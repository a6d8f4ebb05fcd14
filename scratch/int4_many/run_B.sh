gunzip -kf rb.gz 2>/dev/null; chmod +x rb
echo "## f16: first the plan's, then tiles in all trees: us, times cuBLAS, against the plan's, GHz"; timeout 16 ./rb b 12; echo "rc $?"
echo "## bf16"; timeout 14 ./rb bf 10; echo "rc $?"
true
