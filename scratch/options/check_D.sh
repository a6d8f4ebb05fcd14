chmod +x bench benchh; 
k() { KINDS=$1 timeout 20 $B $2 $3 || echo "$* failed $?"; }
for B in $PWD/bench $PWD/benchh; do echo $B
k ,4, stressf 64; k ,16, stressf 64; k ,32, stressf 64; k ,32, stressf 128; done
B=$PWD/bench
k ,64, alone 64; k ,64, alone 128; k ,64, stressf 64; k ,64, stressf 128; k ,4, against 64
