gunzip -kf rc.gz 2>/dev/null; chmod +x rc
echo "## f16: first the plan's, then tiles in all trees: us, times cuBLAS, against the plan's, GHz"; timeout 14 ./rc b 10; echo "rc $?"
echo "## bf16"; timeout 12 ./rc bf 8; echo "rc $?"
echo "## sweep"; timeout 14 ./rc time 10; echo "rc $?"
true
