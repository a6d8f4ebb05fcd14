"""Steps in turns on both attentions: python3 -P step.py (DRY=1: tiny, on the CPU)."""
import collections, glob, os, re, sys, tempfile, time
DRY = bool(os.environ.get("DRY"))
TREE = os.environ["TREE"]
T0 = time.time()
if DRY:
    os.environ["JAX_PLATFORMS"] = "cpu"
sys.path[:0] = [TREE + "/benchmarks"]
import training_engine as te

def say(*a):
    print(*a, flush=True)

def classify(name):
    n = name.lower()
    for key, what in (
        ("hopper_preprocess", "1 attn pre"), ("hopper_postprocess", "4 attn post"), ("hopper_backward", "3 attn main"),
        ("dot_do_o", "1 attn pre"), ("convert_dq", "4 attn post"), ("bprop", "3 attn main"), ("backward", "3 attn main"),
        ("fprop", "0 attn fwd"), ("hopper_kernel", "0 attn fwd"), ("forward", "0 attn fwd"), ("cudnn", "5 cudnn other"),
        ("memset", "6 memset"), ("memcpy", "6 memcpy"),
        ("nvjet", "7 gemm"), ("gemm", "7 gemm"), ("cutlass", "7 gemm"), ("cublas", "7 gemm"), ("splitk", "7 gemm"), ("xmma", "7 gemm"),
        ("transpose", "8 transpose/copy"), ("copy", "8 transpose/copy"), ("reduce", "9a reduce fusion"), ("fusion", "9b fusion")):
        if key in n:
            return what
    return "9c other"

def short(name):
    name = re.sub(r"<.*", "", name) if "hopper" in name else name
    return re.sub(r"\s+", " ", name)[-90:] if "cudnn" in name else name[:90]

def traced(run):
    """Kernels of a run: [(start ns, duration ns, name)], sorted."""
    import jax
    with tempfile.TemporaryDirectory() as d:
        with jax.profiler.trace(d):
            run()
        path, = glob.glob(d + "/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(path)
        out = []
        names = [(p.name, [l.name for l in p.lines][:12]) for p in data.planes]
        for plane in data.planes:
            if not (plane.name.startswith("/device:GPU") or (DRY and "CPU" in plane.name)):
                continue
            for line in plane.lines:
                if not DRY and not line.name.startswith("Stream"):
                    continue
                for e in line.events:
                    out.append((e.start_ns, e.duration_ns, e.name))
    if not out:
        say('NO EVENTS:', names)
        out = [(0, 1, 'none')]
    return sorted(out)

def busy_ns(events):
    end, total = 0, 0
    for s, d, _ in events:
        if s + d > end:
            total += s + d - max(s, end)
            end = s + d
    return total

def table(events, runs, top, head):
    by, cat = collections.defaultdict(lambda: [0, 0]), collections.defaultdict(lambda: [0, 0])
    for _, d, n in events:
        for t, k in ((by, n), (cat, classify(n))):
            t[k][0] += 1; t[k][1] += d
    span = events[-1][0] + events[-1][1] - events[0][0]
    busy = busy_ns(events)
    say(f"## {head}: span {span/1e6/runs:.2f} ms, busy {busy/1e6/runs:.2f}, idle {(span-busy)/1e6/runs:.2f}, kernels {len(events)//runs}")
    say("  " + "; ".join(f"{k[k.index(' ')+1:]} x{c//runs} {t/1e3/runs:.0f} us" for k, (c, t) in sorted(cat.items())))
    for n, (c, t) in sorted(by.items(), key=lambda x: -x[1][1])[:top]:
        say(f"  {t/1e3/runs:9.1f} us {100*t/busy:5.1f}% x{c/runs:<6.4g} {t/c/1e3:8.1f} each  [{classify(n)}] {short(n)}")

def main():
    engine = te.TrainingEngine()
    import jax, statistics
    import jax_baracuda
    say(jax_baracuda.__file__)
    C = lambda L, B: te.TrainingCell(L, B, "save_products", 22, preset="tiny" if DRY else "medium")
    cells = [C(32, 2)] if DRY else [C(4096, 8), C(16384, 2)]
    impls = ["jax_nn" if DRY else "jax_cudnn", "jax_baracuda"]
    jobs = [(i, c) for c in cells for i in impls]
    engine.prepare(jobs)
    say(f"[{time.time()-T0:.0f} s] compiled")
    for cell in cells:
        text = engine.compiled(("jax_baracuda", cell))[0].as_text()
        say(cell.length, "calls of the forward, backward:", *(len(re.findall(n, text)) for n in ('target="jax_baracuda_flash_attention"', 'target="jax_baracuda_flash_attention_backward"')))
        windows = [jax.device_put(engine.data.train_batch(engine.corpus, cell.batch, cell.length, seed=0, step=s)) for s in range(22)]
        states = {i: engine.compiled(engine.settings(i, cell)[0])() for i in impls}
        losses = {i: [] for i in impls}
        def go(i, n):
            t = time.perf_counter()
            for _ in range(n):
                states[i], loss = engine.compiled((i, cell))[0](states[i], windows[len(losses[i])])
                losses[i].append(loss)
            jax.block_until_ready(states[i].step)
            return (time.perf_counter() - t) / n * 1e3
        ms = {i: [] for i in impls}
        for i in impls: go(i, 3)
        for _ in range(3):
            for i in impls: ms[i].append(go(i, 4))
        a, b = (statistics.median(ms[i]) for i in impls)
        say(f"## S={cell.length}: " + "; ".join(f"{i} {[round(x, 1) for x in ms[i]]}" for i in impls) + f"; ratio {a/b:.3f}")
        for i in impls: say("  ", i, [round(float(x), 4) for x in losses[i]])
        table(traced(lambda: go("jax_baracuda", 1)), 1, 12, f"traced S={cell.length}")
        del states
    say(f"[{time.time()-T0:.0f} s] done")

main()
