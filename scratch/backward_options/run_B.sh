gunzip -f ab.gz ab16.gz *.so.gz; chmod +x ab ab16
r() { timeout -s KILL 5 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab bench 64 -n -c -s4096,512 -r9 -o.bB m64@.b p64@b c64@bB d64@bB
r ./ab bench 128 -n -c -s4096,512 -r9 -o.bB m128@.b p128@b c128@bB d128@bB
r ./ab bench 96 -n -c -s4096 -r7 -o.bB m96@.b c96@bB
r ./ab bench 256 -n -c -s4096 -r7 -o.bB m256@.b c256@bB
r ./ab bench 128 -n -s4096 -r7 -o.bB m128@.b c128@bB
export XLA_FLAGS=--xla_gpu_autotune_level=0 OMP_NUM_THREADS=4
PYTHONPATH=$TREE timeout -s KILL 24 python3 -P trans.py 128 2>&1 | grep -v -i warning | cut -c1-500; echo "t=$SECONDS"
