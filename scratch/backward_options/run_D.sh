gunzip -f *.gz; chmod +x bg bg16
timeout -s KILL 10 ./bg bench bgold bgnew3 mall128_64_256 2>&1; echo "t=$SECONDS"
