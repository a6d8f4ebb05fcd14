[ -f ab ] || python3 -c "import tarfile; tarfile.open('all.tar.xz').extractall()"; chmod +x ab ab16
r() { [ $SECONDS -gt 27 ] && { echo "no time: $*"; return; }; timeout -s KILL 9 "$@" 2>&1; local rc=$?; [ $rc != 0 ] && echo "rc $rc: $*"; echo "t=$SECONDS"; }
r ./ab bench 128 -s2048,4096,8192,16384 -r7 b_all head r1 r2 r3 n3 n5 n9 n13
r ./ab mix 128 -s16384 -t5 b_all head r1 r2 r3 n3 n13
r ./ab mix 128 -s4096 -t2 b_all head n3 n9
r ./ab bench 64 -s1024,2048,4096,8192,16384 -r7 b_all head
r ./ab bench 96 -s2048,4096,16384 -r5 b_all head
r ./ab few 128 -r9 b_all head
r ./ab few 64 -r9 b_all head
r ./ab mix 64 -s4096 -t1.5 b_all head
r ./ab bench 128 -c -s512,1024,2048,4096,16384 -r7 b_all head
r ./ab bench 128 -d -s2048,16384 -r5 b_all head
r ./ab bench 192 -c -s2048,16384 -r5 b_all head
for v in b_all r1; do [ $SECONDS -lt 27 ] && timeout -s KILL 8 ncu --clock-control none -k regex:hopper_backward --metrics gpu__time_duration.sum,sm__cycles_elapsed.max,l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed,l1tex__data_pipe_lsu_wavefronts_mem_shared.sum,l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum,sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active,sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_elapsed ./ab one 128 -s4096 $v 2>&1 | grep -E "gpu__|l1tex|sm__|rror" ; done; echo t=$SECONDS
