gunzip -kf sweep.gz 2>/dev/null; chmod +x sweep
echo "## diag"; timeout 8 ./sweep diag 6; rc=$?; echo "rc $rc"
echo "## sweep"; if [ $rc = 0 ]; then timeout 28 ./sweep time 21; else timeout 28 ./sweep time 21 base; fi; echo "rc $?"
true
