[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab
r() { timeout -s KILL 25 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab check 128 -r5 e128 s1_128 s2_128 s0_128 r128 | cut -c1-120 | head -20
r ./ab check 64 -r5 e64 s1_64 s2_64 | cut -c1-120 | head -20
r ./ab check 96 -r5 e96 t96 | cut -c1-120 | head -20
for v in 128 64 96; do echo "race rc$v"; timeout -s KILL 15 compute-sanitizer --tool racecheck --racecheck-report all ./ab check $v -x -K1 -k5 rc$v 2>&1 | sed 's/jax_baracuda:://g;s/void.*Params)//' | cut -c1-200| tail -12; echo t=$SECONDS; done
echo race li128; timeout -s KILL 15 compute-sanitizer --tool racecheck --racecheck-report all ./ab check 128 -x -K1 -k2 li128 > race.txt 2>&1; grep -E "^=========.*(Race|access|hazard)" race.txt | sed 's/void.*Params)//' | sed 's/.*bwd\/ffi//' | sort | uniq -c | sort -rn | cut -c1-220 | head -40; echo t=$SECONDS
echo race rc128det; timeout -s KILL 12 compute-sanitizer --tool racecheck ./ab check 128 -r1 -K29 -k30 rc128 2>&1 | sed 's/void.*Params)//' | tail -5

r ./ab check 128 -x h128 d128 | cut -c1-120 | head; r ./ab check 64 -r5 h64 d64 | cut -c1-120 | head;  r ./ab check 96 -r5 h96 d96 | cut -c1-120 | head
for v in e128 h128; do echo $v; ERRORS=1 timeout 20 ./ab check 128 -x -K3 -k7 $v | grep -E "d[QK]:"; done
