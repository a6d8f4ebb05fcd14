chmod +x bench; B=$PWD/bench
f() { # dim length repeats
  timeout 4 $B features $1 $2 $3 || { echo "failed $?"; [ "$F" ] && return; F=1; for v in drawers drawersint rowmma rowmma2c small small2c float; do ONLY=,$v, timeout 1 $B features $1 $2 $3 || echo "$v failed $?"; done; }
}
f 128 4096 9; f 64 4096 7; f 128 512 11; f 64 512 11; f 64 1024 9; f 128 16384 3; f 64 16384 3
