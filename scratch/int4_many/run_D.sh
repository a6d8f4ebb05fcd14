gunzip -kf rd.gz 2>/dev/null; chmod +x rd
echo "## f16"; timeout 8 ./rd b 6; echo "rc $?"
echo "## bf16"; timeout 8 ./rd bf 6; echo "rc $?"
echo "## sweep"; timeout 12 ./rd time 8; echo "rc $?"
true
