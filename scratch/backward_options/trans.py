"""Where the time of deterministic forward+backward at 16384 goes."""
import collections, ctypes, functools, glob, os, statistics, sys, tempfile, threading, time
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
from jax_baracuda.testing import timing
timing.add_xla_flags(timing.COMMAND_BUFFER_FLAG, timing.IN_ORDER_FLAG)
import jax, jax.numpy as jnp
import jax_baracuda as jb
T0 = time.time()

class Watch(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True)
        self.lib = ctypes.CDLL("libnvidia-ml.so.1"); self.lib.nvmlInit_v2()
        self.dev = ctypes.c_void_p(); self.lib.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self.dev))
        self.rows = []
    def get(self):
        c, m, w = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
        self.lib.nvmlDeviceGetClockInfo(self.dev, 1, ctypes.byref(c)); self.lib.nvmlDeviceGetClockInfo(self.dev, 2, ctypes.byref(m))
        self.lib.nvmlDeviceGetPowerUsage(self.dev, ctypes.byref(w))
        r = ctypes.c_ulonglong(); self.lib.nvmlDeviceGetCurrentClocksThrottleReasons(self.dev, ctypes.byref(r))
        return c.value, m.value, w.value // 1000, r.value
    def run(self):
        while True:
            self.rows.append((time.perf_counter(), *self.get())); time.sleep(0.004)
    def between(self, a, b):
        rows = [r[1:] for r in self.rows if a <= r[0] <= b] or [self.get()]
        med = [int(statistics.median(r[i] for r in rows)) for i in range(3)]
        reasons = 0
        for r in rows: reasons |= r[3]
        return f"{med[0]}/{min(r[0] for r in rows)} MHz mem {med[1]} {med[2]} W why {reasons:#x}"

def programs(D, S):
    H, B = 2048 // D, max(1, 16384 // S)
    shape = jax.ShapeDtypeStruct((B, S, H, D), jnp.bfloat16)
    op = {d: functools.partial(jb.flash_attention, is_causal=True, deterministic=d) for d in (False, True)}
    def both(f):
        def g(before, q, k, v, dout):
            del before
            out, pull = jax.vjp(f, q, k, v)
            return out, *pull(dout)
        return g
    def fwd(before, q, k, v, dout):
        del before
        return op[False](q, k, v)
    def donated(f, args):
        like = jax.eval_shape(f, None, *args)
        return jax.jit(f, donate_argnums=0, keep_unused=True).lower(like, *args).compile(), like
    made = {"fwd": (donated(fwd, (shape,) * 4), 1)}
    tree = {}
    for d in (False, True):
        name = "det" if d else "plain"
        made[f"both {name}"] = (donated(both(op[d]), (shape,) * 4), 3.5)
        def save(q, k, v, d=d):
            leaves, tree[d] = jax.tree.flatten(jax.vjp(op[d], q, k, v)[1])
            return leaves
        leaves = jax.eval_shape(save, shape, shape, shape)
        def bwd(before, dout, *leaves, d=d):
            del before
            return jax.tree.unflatten(tree[d], leaves)(dout)
        made[f"bwd {name}"] = (donated(bwd, (shape, *leaves)), 2.5, jax.jit(save))
    arrays = [jax.random.normal(k, shape.shape, jnp.bfloat16) for k in jax.random.split(jax.random.key(0), 4)]
    ready = {}
    for name, (pair, f, *rest) in made.items():
        program, like = pair
        args = arrays if not rest else [arrays[3], *rest[0](*arrays[:3])]
        state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        ready[name] = [program, args, state, f * 4 * S * S / 2 * D * H * B]
    return ready

def queue(entry, n):
    program, args, state, _ = entry
    for _ in range(n): state = program(state, *args)
    entry[2] = state
    jax.block_until_ready(state)

def timed(entry, seconds, watch):
    queue(entry, 2)
    t = time.perf_counter(); queue(entry, 4); once = (time.perf_counter() - t) / 4
    n = max(2, int(seconds / once))
    a = time.perf_counter(); queue(entry, n); b = time.perf_counter()
    return (b - a) / n * 1e3, watch.between(a, b)

def traced(entry, n, warm=0.3):
    end = time.time() + warm
    while time.time() < end: queue(entry, 8)
    found = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder): queue(entry, n)
        for path in glob.glob(folder + "/**/*.xplane.pb", recursive=True):
            for plane in jax.profiler.ProfileData.from_file(path).planes:
                if not plane.name.startswith("/device:GPU"): continue
                for line in plane.lines:
                    if not line.name.startswith("Stream"): continue
                    for e in line.events: found[e.name].append((e.start_ns, e.duration_ns / 1e6))
    return found


watch = Watch(); watch.start()
S = int(os.environ.get("S", 16384))
D = int(sys.argv[1])
ready = programs(D, S)
for e in ready.values(): queue(e, 3)
def series(entry, seconds):
    """Milliseconds a call of two at a time, as the benchmark times them."""
    rows, end = [], time.perf_counter() + seconds
    queue(entry, 1)
    while time.perf_counter() < end:
        program, args, state, _ = entry
        state = program(state, *args)
        corner = timing._corner(state)
        state = program(state, *args)
        jax.block_until_ready(corner)
        a = time.perf_counter()
        state = program(state, *args)
        entry[2] = state
        jax.block_until_ready(state)
        b = time.perf_counter()
        rows.append((a, b, (b - a) / 2 * 1e3))
    return rows
timing._corner(ready["both det"][2])
for kind in ("det", "plain", "det", "plain"):
    timing._corner(ready["both " + kind][2]); timing._corner(ready["bwd " + kind][2])
    time.sleep(1.5)
    t0 = time.perf_counter()
    end = t0 + 0.25
    while time.perf_counter() < end: queue(ready["bwd " + kind], 2)
    first = series(ready["bwd " + kind], 0.15)
    rows = series(ready["both " + kind], 1.0)
    for what, rs in (("bwd", first), ("both", rows)):
        text = []
        step = max(1, len(rs) // 14)
        for k in range(0, len(rs), step):
            part = rs[k:k + step]
            ms = sum(r[2] for r in part) / len(part)
            clock = watch.between(part[0][0], part[-1][1]).split(" ")
            text.append(f"{part[0][0]-t0:.2f}s {ms:.2f}@{clock[0].split('/')[0]},{clock[4]}W")
        print(f"{what} {kind} ({min(r[2] for r in rs):.2f}..{max(r[2] for r in rs):.2f} ms): " + " | ".join(text), flush=True)
print(f"t={time.time()-T0:.0f}")
