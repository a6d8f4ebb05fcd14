"""How often XLA runs the calls of a scanned layer: custom calls in the compiled HLO, by target."""
import collections, os, re, sys, time
import jax, jax.numpy as jnp, numpy as np
import jax_baracuda as jb
from jax_baracuda.quant import Int4Weight

L, B, S, F, H, D = 3, 2, 64, 512, 4, 128
CPU = jax.default_backend() == "cpu"
key = iter(jax.random.split(jax.random.key(0), 99))
def normal(*shape, dtype=jnp.bfloat16, scale=1.0):
    return (scale * jax.random.normal(next(key), shape, jnp.float32)).astype(dtype)
def int4():
    ws = [Int4Weight.quantize(normal(F, F, scale=F**-0.5)) for _ in range(L)]
    return jax.tree.map(lambda *a: jnp.stack(a), *ws)

weights = {k: int4() for k in "qkvou"}
lora = {"a": normal(L, F, 16, scale=F**-0.5), "b": normal(L, 16, F, scale=0.1), "bias": normal(L, F)}
rows = normal(B, S, F)
positions = jnp.arange(S, dtype=jnp.int32)[None].repeat(B, 0)

def sum2(x): return (x.astype(jnp.float32) ** 2).mean()
def loss(layer, x, frozen, tuned):
    def body(x, w): return layer(x, *w), None
    return sum2(jax.lax.scan(body, x, (frozen, tuned))[0])

def lora_after(x, w, t):      # x -> int4 + LoRA of the same x, silu
    y = jb.int4_matmul(x, w["q"]) + (x @ t["a"]) @ t["b"]
    return x + jax.nn.silu(y)
def lora_bias(x, w, t):
    y = jb.int4_matmul(x, w["q"], bias=t["bias"]) + (x @ t["a"]) @ t["b"]
    return x + jax.nn.silu(y)
def direct(x, w, t):          # the product itself is a residual: of silu, and of the LoRA matrix
    y = jb.int4_matmul(x, w["q"])
    return x + jax.nn.silu(y) + (y @ t["a"]) @ t["b"]
def squared(x, w, t):
    y = jb.int4_matmul(x + t["bias"], w["q"])
    return x + y * y
def carry(x, w, t):           # carried: the next layer's input is the call's result, a residual
    x = x + (x @ t["a"]) @ t["b"]
    return jb.int4_matmul(x, w["q"])
def llama(x, w, t):           # q, k, v int4 -> rope -> attention -> o int4, LoRA on q and o
    q = jb.int4_matmul(x, w["q"]) + (x @ t["a"]) @ t["b"]
    k, v = jb.int4_matmul(x, w["k"]), jb.int4_matmul(x, w["v"])
    q, k, v = (y.reshape(B, S, H, D) for y in (q, k, v))
    q, k = jb.apply_rope(q, positions), jb.apply_rope(k, positions)
    o = jb.flash_attention(q, k, v, is_causal=True).reshape(B, S, F)
    x = x + jb.int4_matmul(o, w["o"]) + (o @ t["a"]) @ t["b"]
    return x + jax.nn.silu(jb.int4_matmul(x, w["u"]))
def rope_only(x, w, t):
    q = jb.apply_rope((x + t["bias"]).reshape(B, S, H, D), positions)
    return x + (q * q).reshape(B, S, F)

def grad_of(layer, remat=False):
    wrap = jax.checkpoint if remat else (lambda f: f)
    return jax.grad(lambda x, f, t: loss(wrap(layer), x, f, t), argnums=(0, 2)), (rows, weights, lora)

caches = normal(L, B, H, 256, D), normal(L, B, H, 256, D)
pages = normal(L, 32, H, 16, D), normal(L, 32, H, 16, D)
lengths = jnp.array([100, 37], jnp.int32)
table = dict(page_indices=jnp.arange(32, dtype=jnp.int32), page_indptr=jnp.array([0, 16, 32], jnp.int32), last_page_len=jnp.array([5, 6], jnp.int32))
one = normal(B, H, D)

def decode_keeps(x, caches):  # results kept for every layer, and used
    def body(x, c):
        out, lse = jb.flash_decode(x, *c, lengths, return_lse=True)
        return x + jnp.tanh(out) * jax.nn.sigmoid(lse)[..., None].astype(x.dtype), (out, lse)
    return jax.lax.scan(body, x, caches)
def paged_keeps(x, caches):
    def body(x, c):
        out, lse = jb.paged_decode(x, *c, **table)
        return x + jnp.tanh(out) * jax.nn.sigmoid(lse)[..., None].astype(x.dtype), (out, lse)
    return jax.lax.scan(body, x, caches)
def prefill_keeps(x, caches):
    def body(x, c):
        out, lse = jb.paged_prefill(x, jnp.arange(B + 1), *c, **table, max_seqlen_q=1)
        return x + jnp.tanh(out) * jax.nn.sigmoid(lse)[..., None].astype(x.dtype), (out, lse)
    return jax.lax.scan(body, x, caches)
def append_xs(x, caches):     # caches as xs and ys: appended to, read, stacked
    def body(x, c):
        c = jb.kv_cache_append(*c, x[:, :, None], x[:, :, None], lengths)
        return x + jnp.tanh(jb.flash_decode(x, *c, lengths + 1)), c
    return jax.lax.scan(body, x, caches)
def paged_xs(x, caches):
    def body(x, c):
        c = jb.paged_append(*c, x, x, jnp.arange(B), jnp.array([244, 245]), table["page_indices"], table["page_indptr"])
        return x + jnp.tanh(jb.paged_decode(x, *c, **table)[0]), c
    return jax.lax.scan(body, x, caches)
def append_carry(x, caches):  # the whole caches carried, layer=
    def body(state, i):
        x, c = state
        c = jb.kv_cache_append(*c, x[:, :, None], x[:, :, None], lengths, layer=i)
        mine = [jax.lax.dynamic_index_in_dim(a, i, 0, False) for a in c]
        return (x + jnp.tanh(jb.flash_decode(x, *mine, lengths + 1)), c), None
    return jax.lax.scan(body, (x, caches), jnp.arange(L))[0]
def int4_keeps(x, w):
    def body(x, w):
        y = jb.int4_matmul(x, w)
        return jnp.tanh(y), y
    return jax.lax.scan(body, x, w)

C = collections.Counter
CASES = {
  "lora beside": (*grad_of(lora_after), C(int4_matmul=1)),
  "lora, bias": (*grad_of(lora_bias), C(int4_matmul=1)),
  "residual": (*grad_of(direct), C(int4_matmul=1)),
  "squared": (*grad_of(squared), C(int4_matmul=1)),
  "carried": (*grad_of(carry), C(int4_matmul=1)),
  "residual remat": (*grad_of(direct, True), C(int4_matmul=2)),
  "llama": (*grad_of(llama), C(int4_matmul=5, rope=4, flash_attention=1, flash_attention_backward=1)),
  "llama remat": (*grad_of(llama, True), C(int4_matmul=10, rope=6, flash_attention=2, flash_attention_backward=1)),
  "rope": (*grad_of(rope_only), C(rope=2)),
  "int4 kept": (int4_keeps, (rows, weights["q"]), C(int4_matmul=1)),
  "int4 kept, 2 rows": (int4_keeps, (rows[:, 0], weights["q"]), C(int4_matmul=1)),
  "decode kept": (decode_keeps, (one, caches), C(flash_decode=1)),
  "paged kept": (paged_keeps, (one, pages), C(paged_decode=1)),
  "prefill kept": (prefill_keeps, (one, pages), C(paged_prefill=1)),
  "append xs": (append_xs, (one, caches), C(append=1, flash_decode=1)),
  "paged append xs": (paged_xs, (one, pages), C(append=1, paged_decode=1)),
  "append layer=": (append_carry, (one, caches), C(append=1, flash_decode=1)),
}

def computations(hlo):
    out, name = {}, None
    for line in hlo.splitlines():
        m = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if m: name = m[1]; out[name] = []
        if name: out[name].append(line)
    return out

def report(name, f, args, want):
    donate = (1,) if "append" in name else ()
    if CPU:
        text = jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
        print(f"{name:18} traced", C(re.findall(r"custom_call @jax_baracuda_(\w+)", text)), dict(want)); return
    compiled = jax.jit(f, donate_argnums=donate).lower(*args).compile()
    hlo = compiled.as_text()
    if os.environ.get("DUMP") == name: open("hlo.txt", "w").write(hlo)
    found = C(re.findall(r'custom_call_target="jax_baracuda_(\w+)"', hlo))
    fused = set(re.findall(r"calls=%?([\w.-]+)", hlo))
    inside, dus = C(), C()
    for comp, lines in computations(hlo).items():
        if comp not in fused: continue
        calls = [m for l in lines for m in re.findall(r'custom_call_target="jax_baracuda_(\w+)"', l)]
        body = "\n".join(lines)
        for c in calls:
            inside[c] += 1
            dus[c] += " dynamic-update-slice(" in body
    copies = len(re.findall(r" copy\(", hlo))
    mem = compiled.memory_analysis().temp_size_in_bytes
    ok = "ok " if found == want else "MORE"
    print(f"{name:18} {ok} calls {dict(found)} want {dict(want) if found != want else '='} in fusions {dict(inside)} with DUS {dict(dus)} copies {copies} temp {mem/1e6:.2f} MB", flush=True)
    if len(sys.argv) > 1 and not donate:
        c2 = compiled(*args); jax.block_until_ready(c2)
        best = []
        for _ in range(20):
            t = time.perf_counter(); jax.block_until_ready(compiled(*args)); best.append(time.perf_counter() - t)
        print(f"    median {np.median(best)*1e6:.0f} us")

for name, (f, args, want) in CASES.items():
    try: report(name, f, args, want)
    except Exception as e: print(name, "FAILED", type(e).__name__, str(e)[:300])
