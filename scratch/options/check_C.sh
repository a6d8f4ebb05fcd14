chmod +x bench; B=$PWD/bench
k() { KINDS=$1 timeout 25 $B $2 $3 || echo "$* failed $?"; }
k ,64, alone 64; k ,64, alone 128
k ,64, stressf 64; k ,128, stressf 64; k ,64, stressf 128; k ,16, stressf 64; k ,32, stressf 64; k ,32, stressf 128
k ,1,64, against 64; k ,1,64, against 128; k ,4,128, against 64; k ,16, against 64; k ,32, against 64
