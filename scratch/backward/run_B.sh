[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab
r() { [ $SECONDS -gt 29 ] && { echo "no time: $*"; return; }; timeout -s KILL 9 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
a="base128 e128 h128 il128 l128 ld128 sa2 sa3 sa3h sa3l sa3hl"; b="base64 d64 i64 il64 l64 hv64 hv64l"; c="base96 e96 d96 i96 il96 l96 it96"
r ./ab bench 128 -r7 $a
r ./ab bench 128 -c -r7 $a
r ./ab bench 64 -r7 $b
r ./ab bench 64 -c -r7 $b
r ./ab bench 96 -r5 $c
r ./ab bench 96 -c -r5 $c
r ./ab bench 128 -s512,1024,2048,4096 -r9 e128 c10_128 c14_128 c20_128
r ./ab bench 128 -s512,1024,2048,4096 -c -r9 e128 c10_128 c14_128 c20_128
r ./ab bench 64 -s512,1024,2048,4096 -r9 i64 c10_64 c14_64 c20_64
r ./ab bench 64 -s512,1024,2048,4096 -c -r9 i64 c10_64 c14_64 c20_64
r ./ab bench 96 -s512,1024,2048,4096 -c -r9 i96 c10_96
r ./ab queue 128 -s16384 -t1.1 base128 e128 sa3 sa3h
r ./ab bench 256 -r5 base256 pd pl
r ./ab bench 256 -c -r5 base256 pd pl
r ./ab bench 192 -r3 base256 pd pl
r ./ab queue 64 -s16384 -t1.1 base64 d64 i64
r ./ab bench 128 -s4096,16384 -r9 $a
