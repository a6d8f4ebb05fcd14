gunzip -kf *.gz 2>/dev/null; chmod +x progB pairD pairF progS pairQ1 pairQ2 pairQ3
timeout 7 ./pairD
echo "query first"; timeout 3 ./pairQ1
echo "query behind the first tile"; timeout 3 ./pairQ2
timeout 10 ./progB
echo "registers, query first"; timeout 3 ./pairQ3
timeout 2 ./pairF
timeout 2 ./progS
