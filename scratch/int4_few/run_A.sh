#!/bin/bash
chmod +x a
timeout 14 ./a abl
timeout 6 ./a sustain
timeout 6 ./a other
N=$(command -v ncu || ls /usr/local/cuda*/bin/ncu /opt/nvidia/nsight-compute/*/ncu 2>/dev/null | head -1)
full() { echo "# ncu $*"; timeout 12 $N --clock-control none -k regex:int4_ -s 2 -c 1 --set full --import-source no -o rep -f ./a one "$@" > n.log 2>&1 || tail -3 n.log; timeout 8 $N -i rep.ncu-rep --page raw --csv > rep.csv 2>/dev/null; python3 prof.py rep.csv; rm -f rep.*; }
full 16 8192 28672 s0 1
full 32 8192 28672 m0 2
