gunzip -kf rb.gz 2>/dev/null; chmod +x rb
timeout 89 ./rb check; echo "rc $?"
