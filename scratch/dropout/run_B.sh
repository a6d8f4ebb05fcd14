chmod +x bench ab; B=$PWD/bench
f() { timeout 6 $B features $1 $2 $3 2>&1 | grep -v "^ *$\|none\|alibi\|cap \|bias\|row\|  all" || echo "failed $?"; }
f 128 4096 9; f 64 4096 9; f 64 1024 9; f 128 512 9; f 64 512 9
M=sm__cycles_elapsed.max,sm__inst_issued.avg.pct_of_peak_sustained_elapsed,sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_elapsed,sm__inst_executed_pipe_fmaheavy.avg.pct_of_peak_sustained_elapsed,sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_elapsed,sm__inst_executed_pipe_fp16.avg.pct_of_peak_sustained_elapsed,sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_elapsed,sm__inst_executed_pipe_tensor_op_gmma.avg.pct_of_peak_sustained_elapsed
n() { echo "$1 $2"; ONLY=,$2, timeout 20 ncu --clock-control none --metrics $M -k regex:hopper_forward --launch-skip 3 --launch-count 1 $B features $1 4096 1 2>&1 | grep "sm__" | awk '{printf "%s %s; ", $1, $3} END{print ""}' | sed 's/sm__inst_executed_pipe_//g; s/.avg.pct_of_peak_sustained_elapsed//g'; }
n 128 old; n 128 min1; n 64 min1three
for d in 128 64; do timeout -s KILL 6 ./ab bench $d -c -s4096,512 -r7 -o.d q$d n$d m$d; done
echo "t=$SECONDS"
