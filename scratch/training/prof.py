"""A training step by kernels: python3 -P prof.py (DRY=1: tiny, on the CPU)."""
import collections, glob, os, re, sys, tempfile, time
DRY = bool(os.environ.get("DRY"))
TREE = os.environ["TREE"]
T0 = time.time()
if DRY:
    os.environ["JAX_PLATFORMS"] = "cpu"
else:  # kernels in CUDA graphs are not traced one by one
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_command_buffer="
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

def body_hlo(program, limit):
    """Of the computations with an attention call: their instructions, without fusions' insides."""
    text = program.as_text()
    for block in re.split(r"\n\n", text):
        lines = block.split("\n")
        if not re.search(r"custom-call\(", block) or not re.search(r"flash_attention|__cudnn\$fmha", block):
            continue
        say(f"  -- {lines[0][:60]}: {len(lines)} lines")
        for l in lines[1:limit]:
            l = re.sub(r", (metadata|backend_config|frontend_attributes)=\{.*", "", l.strip())
            l = re.sub(r"\{[\d,]*(:[^}]*)?\}", lambda m: m.group(0) if re.match(r"\{[\d,]+\}", m.group(0)) and not re.match(r"\{(\d+,)*0\}", m.group(0)) and m.group(0) != "{0}" else "", l)
            if re.search(r" = [^ ]+ (get-tuple-element|parameter|constant|bitcast)\(", l) or " tuple(" in l:
                continue
            say("    " + l[:170])

def micro():
    import jax, jax.numpy as jnp, numpy as np, jax_baracuda
    shapes = [(2, 64, 4, 2, 16)] if DRY else [(8, 4096, 8, 2, 128), (2, 16384, 8, 2, 128)]
    def ops(impl):
        if impl == "ours":
            return lambda q, k, v: jax_baracuda.flash_attention(q, k, v, is_causal=True)
        return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=None if DRY else "cudnn")
    for B, S, H, Hkv, D in shapes:
        keys = jax.random.split(jax.random.key(0), 4)
        mk = lambda k, h: jax.random.normal(k, (B, S, h, D), jnp.bfloat16)
        q, k, v, g = mk(keys[0], H), mk(keys[1], Hkv), mk(keys[2], Hkv), mk(keys[3], H)
        for impl in ("cudnn", "ours"):
            def both(q, k, v, g, op=ops(impl)):
                out, pull = jax.vjp(op, q, k, v)
                return pull(g)
            f = jax.jit(both)
            jax.block_until_ready(f(q, k, v, g))
            def run():
                r = None
                for _ in range(8):
                    r = f(q, k, v, g)
                jax.block_until_ready(r)
            run()
            table(traced(run), 8, 7, f"micro {impl} B={B} S={S} H={H}/{Hkv}")

def main():
    engine = te.TrainingEngine()
    import jax
    steps = 8
    C = lambda L, B: te.TrainingCell(L, B, "save_products", 22, preset="tiny" if DRY else "medium")
    cells = [C(32, 2)] if DRY else [C(4096, 8), C(16384, 2)]
    impls = ["jax_nn" if DRY else "jax_cudnn", "jax_baracuda"]
    micro()
    say(f"[{time.time()-T0:.0f} s] micro done")
    jobs = [(i, c) for c in cells for i in impls]
    engine.prepare(jobs)
    say(f"[{time.time()-T0:.0f} s] compiled")
    for cell in cells:
        for impl in impls:
            if time.time() - T0 > 95:
                say("out of time"); return
            program, seconds = engine.compiled((impl, cell))
            state = engine.compiled(engine.settings(impl, cell)[0])()
            windows = [jax.device_put(engine.data.train_batch(engine.corpus, cell.batch, cell.length, seed=0, step=s)) for s in range(steps)]
            losses = []
            def go(n):
                nonlocal state
                t = time.perf_counter()
                for i in range(n):
                    state, loss = program(state, windows[len(losses)])
                    losses.append(loss)
                jax.block_until_ready(state.step)
                return (time.perf_counter() - t) / n * 1e3
            go(2)
            ms = go(4)
            events = traced(lambda: go(1))
            table(events, 1, 26, f"step {impl} S={cell.length}: {ms:.1f} ms untraced (no graphs)")
            say("  losses", [round(float(x), 4) for x in losses])
            del state
    for impl in impls:
        say(f"## HLO {impl} S={cells[0].length}")
        body_hlo(engine.compiled((impl, cells[0]))[0], 90)
    say(f"[{time.time()-T0:.0f} s] done")

main()
