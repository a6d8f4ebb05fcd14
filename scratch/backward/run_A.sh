[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab
r() { [ $SECONDS -gt 29 ] && { echo "no time: $*"; return; }; timeout -s KILL 9 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
a="base128 e128 ev128 s0_128 s1_128 s2_128 r128 h128 d128"; b="base64 e64 s0_64 s1_64 s2_64 h64 d64"
r ./ab bench 128 -r7 $a
r ./ab bench 128 -c -r7 $a
r ./ab bench 64 -r7 $b
r ./ab bench 64 -c -r7 $b
r ./ab bench 96 -r7 base96 e96 t96 h96 d96
r ./ab bench 96 -c -r7 base96 e96 t96 h96 d96
r ./ab queue 128 -s16384 -t1.1 base128 e128 h128 d128 nl128 na128 nla128
r ./ab queue 64 -c -s16384 -t1.1 base64 e64 h64 d64
r ./ab bench 128 -s512,1024,2048 -r15 $a
r ./ab bench 128 -s512,1024,2048 -c -r15 $a
r ./ab bench 64 -s512,1024,2048 -r15 $b
r ./ab bench 256 -r5 base256 e256
for v in base128 s1_128; do [ $SECONDS -lt 27 ] && timeout -s KILL 6 ncu --clock-control none --metrics gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum ./ab one 128 -c -s512 $v 2>&1 | grep -E "hopper_|gpu__time|dram__" | grep -v fill | sed 's/void jax.*hopper_/hopper_/;s/<.*//' ; done; echo t=$SECONDS
