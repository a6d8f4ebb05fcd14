"""Ops without a two-GPU test of their own, sharded over two GPUs, against one."""
import time; t0 = time.time()
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jax_baracuda as jb
from jax_baracuda.quant import Int4Weight
from jax_baracuda import flash_attention
devices = jax.devices(); print(len(devices), "GPUs", f"{time.time()-t0:.0f} s")
mesh = Mesh(np.asarray(devices[:2]), ("x",))
rng = np.random.default_rng(0)
def normal(*s): return jnp.asarray(rng.standard_normal(s), jnp.bfloat16)
def check(name, f, args, specs, tol=0.0):
    try:
        want = jax.tree.leaves(jax.jit(f)(*args))
        placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(args, specs, strict=True)]
        c = jax.jit(f).lower(*placed).compile(); text = c.as_text()
        got = jax.tree.leaves(c(*placed))
        worst = max(float(np.abs(np.asarray(g, np.float32) - np.asarray(w, np.float32)).max()) for g, w in zip(got, want))
        print(f"{name:32} {'ok ' if worst <= tol else 'BAD'} max diff {worst:.2e} all-gather {text.count(' all-gather')} all-reduce {text.count(' all-reduce(')} shards {[len(g.sharding.device_set) for g in got]}", flush=True)
    except Exception as e: print(f"{name:32} FAILED {type(e).__name__} {str(e)[:300]}", flush=True)

w = Int4Weight.quantize(normal(512, 512) / 22.6); x = normal(16, 512)
leaves, tree = jax.tree.flatten(w)
def product(x, *leaves): return jb.int4_matmul(x, jax.tree.unflatten(tree, leaves))
print([a.shape for a in leaves])
check("int4 rows (batch)", product, (x, *leaves), (P("x"), *[P()] * len(leaves)))
check("int4 columns", product, (x, *leaves), (P(), P("x"), *[P(None, "x")] * (len(leaves) - 1)))
check("int4 contraction", product, (x, *leaves), (P(None, "x"), P(None, "x"), *[P("x")] * (len(leaves) - 1)), tol=0.05)
q, k, v = normal(2, 8, 128), normal(2, 4, 256, 128), normal(2, 4, 256, 128)
n = jnp.array([200, 31], jnp.int32)
check("kv_cache_append heads", lambda k, v, r, n: jb.kv_cache_append(k, v, r, r, n), (k, v, normal(2, 4, 3, 128), n), (P(None, "x"), P(None, "x"), P(None, "x"), P()))
check("apply_rope heads", lambda x, p: jb.apply_rope(x, p), (normal(2, 64, 8, 128), jnp.arange(64)), (P(None, None, "x"), P()))
def attention_both(q, k, v): return jax.value_and_grad(lambda *a: flash_attention(*a, is_causal=True).astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)[1]
a = (normal(2, 300, 8, 128), normal(2, 300, 4, 128), normal(2, 300, 4, 128))
check("attention grad, heads, explicit", attention_both, a, [P(None, None, "x")] * 3, tol=0.02)
pages = normal(40, 4, 16, 128); rows = normal(2, 4, 128)
t = (jnp.arange(40, dtype=jnp.int32), jnp.array([0, 20, 40], jnp.int32))
check("paged_append heads", lambda k, v, r, i, p: jb.paged_append(k, v, r, r, jnp.arange(2), jnp.array([7, 300]), i, p), (pages, pages + 1, rows, *t), (P(None, "x"), P(None, "x"), P(None, "x"), P(), P()))
check("paged_prefill heads", lambda q, k, v, i, p: jb.paged_prefill(q, jnp.array([0, 20, 50]), k, v, i, p, jnp.array([3, 16]), max_seqlen_q=32), (normal(50, 8, 128), pages, pages + 1, *t), (P(None, "x"), P(None, "x"), P(None, "x"), P(), P()))
print(f"{time.time()-t0:.0f} s")
