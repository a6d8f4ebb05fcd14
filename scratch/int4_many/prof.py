import csv, sys, re
rows = [r for r in csv.reader(open(sys.argv[1])) if len(r) > 20]
h, v = rows[0], rows[2]
d = dict(zip(h, v))
def f(x):
    try: return float(x.replace(',', ''))
    except ValueError: return None
want = [r'^gpu__time_duration.sum', r'^sm__cycles_active.avg$', r'^smsp__issue_active.avg.pct', r'^smsp__inst_executed.sum$', r'^smsp__inst_issued.sum$', r'^dram__throughput.avg.pct', r'^dram__bytes_read.sum$', r'^lts__t_sectors_op_read.sum$', r'^lts__throughput.avg.pct', r'^l1tex__throughput.avg.pct', r'^l1tex__data_bank_conflicts', r'^l1tex__data_pipe_lsu_wavefronts_mem_shared.*sum$', r'^sm__inst_executed_pipe_[a-z_0-9]+\.avg\.pct_of_peak_sustained_active', r'^sm__pipe_[a-z_0-9]+cycles_active\.avg\.pct_of_peak_sustained_active', r'^smsp__warps_eligible.avg.per_cycle_active', r'^smsp__cycles_active.avg$', r'^launch__registers', r'^sm__warps_active.avg.per_cycle_active']
for k in sorted(d):
    if any(re.search(w, k) for w in want) and f(d[k]): print(k.replace('.avg.pct_of_peak_sustained_active', ' %').replace('.avg.pct_of_peak_sustained_elapsed', ' %'), d[k], end='; ')
print()
st = [(f(d[k]), re.sub(r'.*stalled_|_per_issue.*', '', k)) for k in d if re.match(r'smsp__average_warps?_(latency_)?issue_stalled_.*(per_issue_active.ratio|\.ratio)$', k) and f(d[k]) and 'not_issued' not in k]
print('warp cycles an instruction:', ', '.join(f'{n} {x:.2f}' for x, n in sorted(st, reverse=True)[:14]))
