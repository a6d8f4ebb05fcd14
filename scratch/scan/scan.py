import re, sys, functools
import jax, jax.numpy as jnp
from jax import lax
import jax_baracuda
from jax_baracuda._src.attention import gradient, primitive
real = primitive.bind
def count(name, bind, remat=None):
    gradient.primitive = type("P", (), {"bind": staticmethod(bind)})
    jax.clear_caches()
    def layer(x, w):
        q = (x @ w[0]).reshape(*x.shape[:2], 8, 128); k = (x @ w[1]).reshape(*x.shape[:2], 2, 128); v = (x @ w[2]).reshape(*x.shape[:2], 2, 128)
        y = jax_baracuda.flash_attention(q, k, v, is_causal=True)
        return x + y.reshape(x.shape) @ w[3], None
    if remat: layer = jax.checkpoint(layer, policy=remat)
    def loss(w, x):
        return jnp.sum(lax.scan(layer, x, w)[0].astype(jnp.float32) ** 2)
    b = jnp.bfloat16
    x = jnp.ones((2, 4096, 1024), b)
    w = [jnp.ones((6, 1024, n), b) for n in (1024, 256, 256, 1024)]
    c = jax.jit(jax.grad(loss)).lower(w, x).compile()
    t = c.as_text()
    calls = re.findall(r'custom_call_target="(jax_baracuda[^"]*)"', t)
    print(name, {n: calls.count(n) for n in set(calls)}, "dynamic_slice_fusion", len(re.findall(r"dynamic.slice.fusion", t)), "barriers", t.count("opt-barrier"))
    if "-v" in sys.argv:
        print("\n".join(l[:260] for l in t.splitlines() if "jax_baracuda" in l))
def barrier(*a, **k):
    r = real(*a, **k)
    return lax.optimization_barrier(tuple(r)) if a[0] == "forward" else r
def barrier_each(*a, **k):
    r = real(*a, **k)
    return [lax.optimization_barrier(x) for x in r] if a[0] == "forward" else r
P = jax.checkpoint_policies
save = P.save_only_these_names("context", "lse")
for name, f in (("none", real), ("barrier", barrier), ("each", barrier_each)):
    try: count(name, f); count(name + " save", f, save); count(name + " remat", f, P.nothing_saveable)
    except Exception as e: print(name, type(e), str(e)[:300])
