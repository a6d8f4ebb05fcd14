gunzip -f *.gz 2>/dev/null; chmod +x bg bg16
r() { timeout -s KILL 30 "$@" 2>&1 | cut -c1-190 | head -14; echo "t=$SECONDS"; }
timeout -s KILL 60 compute-sanitizer --tool racecheck --kernel-name kns=hopper_bias ./bg check 64 64 bgrace > race.txt 2>&1 &
timeout -s KILL 60 compute-sanitizer --tool memcheck --kernel-name kns=hopper_bias ./bg check 128 128 bgnew3 > mem.txt 2>&1 &
for d in "128 128" "64 64" "192 128" "256 256" "40 24" "96 96"; do r ./bg check $d bgnew3; done
r ./bg16 check 128 128 bgnew3
r ./bg16 check 64 64 bgnew3
wait
tail -4 mem.txt | cut -c1-180; grep -v "^=* *$" race.txt | tail -6 | cut -c1-240
