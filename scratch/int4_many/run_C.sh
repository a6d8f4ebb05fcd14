gunzip -kf *.gz 2>/dev/null; chmod +x wc anom2
timeout 15 ./wc time; echo "rc $?"
timeout 7 ./anom2; echo "rc $?"
N=$(command -v ncu || ls /usr/local/cuda*/bin/ncu /opt/nvidia/nsight-compute/*/ncu 2>/dev/null | head -1)
for t in 1; do echo "# ncu tree $t"; timeout 8 $N --clock-control none -k regex:int4_ -s 2 -c 1 --set full --import-source no -o rep -f ./wc one $t > n.log 2>&1 || tail -3 n.log; timeout 6 $N -i rep.ncu-rep --page raw --csv > rep.csv 2>/dev/null; python3 prof.py rep.csv; timeout 6 $N -i rep.ncu-rep --page source --csv > src.csv; python3 top.py src.csv 0.007 | cut -c1-150; rm -f rep.*; done
