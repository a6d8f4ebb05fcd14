gunzip -kf wa.gz 2>/dev/null; chmod +x wa
timeout 60 ./wa check; echo "rc $?"
