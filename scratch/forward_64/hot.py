# The instructions at which warps stood most often, from `ncu --page source --csv`.
import csv, sys
rows = list(csv.reader(sys.stdin))
head = next(r for r in rows if "Source" in r)
at = rows.index(head)
name = head.index("Source")
col = next((i for i, h in enumerate(head) if h in ("# Samples", "Samples", "Warp Stall Sampling (All Samples)", "Warp Stall Sampling (All Cycles)")), None)
if col is None:
    print(head); col = next(i for i, h in enumerate(head) if "ampl" in h)
ex = next((i for i, h in enumerate(head) if "Instructions Executed" in h), None)
stalls = [i for i, h in enumerate(head) if h.startswith("stall_") and "not_issued" not in h.lower() and "not-issued" not in h.lower()]
def num(x):
    try: return float(x.replace(",", ""))
    except ValueError: return 0.0
body = [r for r in rows[at + 1:] if len(r) == len(head) and r[name]]
total = sum(num(r[col]) for r in body) or 1
print(f"{len(body)} instructions, {total:.0f} samples, {sum(num(r[ex]) for r in body) / 1e6:.1f} M executed" if ex else len(body))
print("by reason:", ", ".join(f"{head[i][6:]} {100 * sum(num(r[i]) for r in body) / total:.1f}%" for i in sorted(stalls, key=lambda i: -sum(num(r[i]) for r in body))[:12]))
ops = {}
for r in body:
    w = r[name].split()
    op = (w[1] if w[0].startswith("@") and len(w) > 1 else w[0]).split(".")[0]
    a = ops.setdefault(op, [0, 0]); a[0] += num(r[col]); a[1] += num(r[ex]) if ex else 0
print("by operation (samples %, M executed):", ", ".join(f"{o} {100 * a[0] / total:.1f} {a[1] / 1e6:.2f}" for o, a in sorted(ops.items(), key=lambda x: -x[1][0])[:28]))
for k, r in enumerate(body):
    share = 100 * num(r[col]) / total
    if share >= 0.7:
        why = sorted(stalls, key=lambda i: -num(r[i]))[:2]
        print(f"{k:5d} {share:4.1f}% {num(r[ex]) / 1e3 if ex else 0:7.0f}k {r[name][:58]:58} " + " ".join(f"{head[i][6:]}:{num(r[i]):.0f}" for i in why if num(r[i])))
