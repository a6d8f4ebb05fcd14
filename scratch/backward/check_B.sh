[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab
r() { timeout -s KILL 25 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab check 128 -x il128 l128 ld128 sa2 sa3 sa3h sa3l sa3hl | cut -c1-120 | head -20
r ./ab check 128 -x c10_128 c14_128 c20_128 | cut -c1-120 | head -20
r ./ab check 64 -x i64 il64 l64 hv64 hv64l | cut -c1-120 | head -20
r ./ab check 64 -x c10_64 c14_64 c20_64 | cut -c1-120 | head -20
r ./ab check 96 -x i96 il96 l96 it96 c10_96 | cut -c1-120 | head -20
for v in base96 i96 il96; do echo $v; ERRORS=1 timeout 20 ./ab check 96 -x -K3 -k5 $v | grep -E "d[QK]:"; done
for v in base64 i64 il64 d64; do echo $v; ERRORS=1 timeout 20 ./ab check 64 -x -K3 -k5 $v | grep -E "d[QK]:"; done
echo race li128; timeout -s KILL 15 compute-sanitizer --tool racecheck --racecheck-report all ./ab check 128 -x -K1 -k5 li128 > race.txt 2>&1; grep -E "^=========.*(Race|access|hazard)" race.txt | sed 's/void [^)]*)//g;s/jax_baracuda:://g' | grep -oE "(Race|and|Error|Warning|Read|Write|access|cuh:[0-9]+|[a-z_]+\.cuh:[0-9]+|[0-9]+ hazards).*" | sed 's/\/work[^ ]*ffi//g' | cut -c1-200 | sort | uniq -c | sort -rn | head -40; grep -oE "[a-z_]+\.cuh:[0-9]+" race.txt | sort | uniq -c | sort -rn | head -40; head -c 3000 race.txt; echo t=$SECONDS
r ./ab check 64 -r3 -K20 i64 | cut -c1-120; r ./ab check 96 -r3 -K20 i96 | cut -c1-120
r ./ab check 256 -x -k12 pd pl | cut -c1-120; r ./ab check 192 -x -K3 -k12 pd pl | cut -c1-120; r ./ab check 192 -v128 -x -K3 -k12 pd | cut -c1-120
