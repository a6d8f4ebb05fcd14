"""1000 repeats bit for bit, with other kernels on the GPU in between: repeat.py bwd|fwd DIMS... """
import functools, os, random, sys, threading, time
import jax, jax.numpy as jnp, numpy as np
START = time.time()
LIMIT = float(os.environ.get("LIMIT", "70"))
sys.setswitchinterval(2e-4)
import jax_baracuda as jb
REPEATS = int(os.environ.get("REPEATS", "1000"))

stop, disturbed = threading.Event(), [0]
def disturb():
    import torch
    streams = [torch.cuda.Stream() for _ in range(2)]
    x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    y = torch.randn(1 << 24, device="cuda")
    r = random.Random(1)
    while not stop.is_set():
        with torch.cuda.stream(r.choice(streams)):
            n = r.randrange(128, 4096, 64)
            if r.random() < 0.5: torch.mm(x[:n], x[:, :n])
            else: y[: n * 4000].mul_(1.0001)
        disturbed[0] += 1
        time.sleep(r.choice((0.0003, 0.001, 0.003)))
        if disturbed[0] % 50 == 0: torch.cuda.synchronize()

def bits(x): return jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])

def options_of(c, B, S, Hq):
    o = {k: c[k] for k in ("is_causal", "local_window_size", "logits_soft_cap", "dropout_rate", "sink_tokens") if k in c}
    a = {}
    key = jax.random.key(5)
    if c.get("alibi"): a["alibi_slopes"] = jnp.exp2(-jnp.arange(1, Hq + 1) * 8.0 / Hq)
    if c.get("bias"): a["bias"] = jax.random.normal(key, (1, Hq, S, S), jnp.bfloat16)
    if c.get("dropout_rate"): a["dropout_seed"] = jnp.asarray((3, 4), jnp.uint32)
    if c.get("lengths"):
        l = np.random.default_rng(0).integers(S // 8, S + 1, (2, B))
        a["query_seq_lengths"], a["key_value_seq_lengths"] = jnp.asarray(l[0], jnp.int32), jnp.asarray(l[1], jnp.int32)
    if c.get("segments"): a["query_segment_ids"] = a["key_value_segment_ids"] = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32) // c["segments"], (B, S))
    return o, a

def case_of(c):
    B, S, Hkv, g, D, V = c["B"], c["S"], c["Hkv"], c["g"], c["D"], c.get("V", c["D"])
    K = c.get("K", S)
    t = jnp.dtype(c.get("t", "bfloat16"))
    o, a = options_of(c, B, S, Hkv * g)
    if "cu" in c: a["cu_seqlens_q"] = a["cu_seqlens_k"] = jnp.asarray(c["cu"], jnp.int32)
    def attend(q, k, v):
        if "cu" in c:
            m = max(b - a_ for a_, b in zip(c["cu"], c["cu"][1:]))
            rest = {n: x for n, x in a.items() if not n.startswith("cu_")}
            return jb.flash_attention_varlen(q[0], k[0], v[0], a["cu_seqlens_q"], a["cu_seqlens_k"], max_seqlen_q=m, max_seqlen_k=m,
                                             deterministic=True, implementation="cuda", **o, **rest)[None]
        return jb.flash_attention(q, k, v, deterministic=True, implementation="cuda", **o, **a)
    def make():
        ks = jax.random.split(jax.random.key(1), 4)
        n = lambda k, *s: jax.random.normal(k, s, jnp.bfloat16).astype(t)
        return n(ks[0], B, S, Hkv * g, D), n(ks[1], B, K, Hkv, D), n(ks[2], B, K, Hkv, V), n(ks[3], B, S, Hkv * g, V)
    return attend, make

def run(what, c):
    attend, make = case_of(c)
    if what == "bwd":
        @jax.jit
        def setup():
            q, k, v, g = make()
            return jax.vjp(attend, q, k, v)[1], g
        call = lambda operands: operands[0](operands[1])
    else:
        setup = jax.jit(lambda: make()[:3])
        call = lambda operands: (attend(*operands),)
    operands = setup()
    @functools.partial(jax.jit, donate_argnums=3, keep_unused=True)
    def step(operands, first, n, previous):
        now = call(operands)
        different = sum(jnp.sum(bits(x) != bits(y), dtype=jnp.int32) for x, y in zip(now, first))
        return now, n + (different > 0)
    shapes = jax.eval_shape(call, operands)
    zeros = lambda: tuple(jnp.zeros(s.shape, s.dtype) for s in shapes)
    first, changed = step(operands, zeros(), jnp.int32(0), zeros())
    sizes = [float(jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))) for x in first]
    now, n = step(operands, first, jnp.int32(0), zeros())
    t, d = time.time(), disturbed[0]
    for i in range(REPEATS - 2):
        now, n = step(operands, first, n, now)
    n = int(n)
    t = time.time() - t
    good = n == 0 and int(changed) == 1 and all(np.isfinite(sizes)) and min(sizes) > 0
    name = " ".join(f"{k}={v}" for k, v in c.items())
    print(f"{'ok' if good else 'FAIL'} {what} {name}: {n} of {REPEATS} differ; {t*1e3/(REPEATS-2):.2f} ms, {disturbed[0]-d} disturbances, rms {' '.join(f'{x:.2g}' for x in sizes)} t={time.time()-START:.0f}", flush=True)
    return good

def backward_cases(D, V):
    c = lambda **k: dict(D=D, **({"V": V} if V != D else {}), **k)
    causal = {"is_causal": True}
    h = 1 if D <= 128 else 2
    yield c(B=1, S=4096, Hkv=8 // h, g=4, **causal)            # there and back
    yield c(B=5, S=1100, Hkv=12 // h, g=4, **causal)
    yield c(B=6, S=1500, Hkv=16 // h, g=1, lengths=1)
    yield c(B=1, S=2100, Hkv=40 // h, g=1, t="float16", **causal)
    yield c(B=3, S=1300, Hkv=12 // h, g=4, t="float16", lengths=1)
    yield c(B=1, S=3000, Hkv=16 // h, g=4, cu=(0, 1400, 1400, 1777, 3000), **causal)
    yield c(B=2, S=1500, Hkv=16 // h, g=4, local_window_size=(700, 0), sink_tokens=4)
    yield c(B=2, S=1500, Hkv=16 // h, g=2, segments=500, **causal)
    if D in (64, 128):
        for f in ({"logits_soft_cap": 20.0}, {"alibi": 1}, {"bias": 1, "S": 1000, "B": 3}, {"dropout_rate": 0.1}):
            yield c(**({"B": 4, "S": 1200, "Hkv": 10, "g": 4} | f), **causal)
            yield c(**({"B": 4, "S": 1200, "Hkv": 10, "g": 1, "t": "float16"} | f), lengths=1) if "bias" not in f else c(**({"B": 4, "S": 1200, "Hkv": 10, "g": 1, "t": "float16"} | f))

def forward_cases(D, V):
    c = lambda **k: dict(D=D, **({"V": V} if V != D else {}), **k)
    causal = {"is_causal": True}
    yield c(B=2, S=4200, Hkv=8, g=4, **causal)
    yield c(B=8, S=1100, Hkv=16, g=1, t="float16")
    yield c(B=8, S=1300, Hkv=4, g=4, lengths=1, **causal)
    yield c(B=1, S=60, K=8000, Hkv=4, g=4)                     # keys split, heads in the rows of a tile
    yield c(B=1, S=6000, Hkv=8, g=4, cu=(0, 2900, 2900, 3777, 6000), **causal)
    if D in (64, 128):
        if D == 64: yield c(B=1, S=8300, Hkv=8, g=4, **causal)
        for f in ({"logits_soft_cap": 20.0}, {"alibi": 1}, {"bias": 1, "S": 1000, "B": 3}, {"dropout_rate": 0.1}):
            yield c(**({"B": 4, "S": 1200, "Hkv": 10, "g": 4} | f), **causal)
            yield c(**({"B": 4, "S": 2200, "Hkv": 10, "g": 1, "t": "float16"} | f))

what, *dims = sys.argv[1:]
threading.Thread(target=disturb, daemon=True).start()
count = bad = 0
lists = [list((backward_cases if what == "bwd" else forward_cases)(*map(int, d.split("/")))) for d in dims]
todo = [l[i] for i in range(int(os.environ.get("SKIP", 0)), max(map(len, lists))) for l in lists if i < len(l)]
if "ONLY" in os.environ: todo = [c for c in todo if any(w in c for w in os.environ["ONLY"].split(","))]
for c in todo:
    if time.time() - START > LIMIT:
        print(f"no time for {len(todo) - count} of {what} {dims}"); break
    count += 1
    try: bad += not run(what, c)
    except Exception as e: bad += 1; print("FAIL", what, c, type(e).__name__, str(e)[:300], flush=True)
stop.set()
print(f"{what} {dims}: {count} cases of {REPEATS} repeats, {bad} bad, {disturbed[0]} disturbances, {time.time()-START:.0f} s", flush=True)
os._exit(bad > 0)
