gunzip -kf *.gz 2>/dev/null; chmod +x mb anom wa
timeout 14 ./wa time; echo "rc $?"
timeout 6 ./mb; echo "rc $?"
timeout 10 ./anom; echo "rc $?"
