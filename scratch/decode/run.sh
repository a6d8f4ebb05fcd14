gunzip -kf *.gz; chmod +x prog*
timeout 12 ./progC check
timeout 12 ./progC64 check
timeout 12 ./progC256 check
timeout 25 ./progC
