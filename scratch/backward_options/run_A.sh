gunzip -f *.gz; chmod +x ab ab16
r() { timeout -s KILL 5 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab bench 128 -n -c -s4096,512 -r9 -o.bB m128@.b n128
r ./ab bench 64 -n -c -s4096,512 -r9 -o.bB m64@.b n64
r ./ab bench 256 -n -c -s4096 -r7 -o.bB m256@.b n256
export XLA_FLAGS=--xla_gpu_autotune_level=0 OMP_NUM_THREADS=4
PYTHONPATH=$TREE timeout -s KILL 32 python3 -P det.py 128 2>&1 | grep -v -i warning | cut -c1-260; echo "t=$SECONDS"
