"""Gradients of grouped heads under masks and with features, kernel against reference."""
import jax, jax.numpy as jnp, time
import jax_baracuda
def run(name, B, S, K, H, Hkv, D, **kw):
    ks = jax.random.split(jax.random.key(1), 4)
    q, k, v, g = (jax.random.normal(a, s, jnp.bfloat16) for a, s in zip(ks, ((B, S, H, D), (B, K, Hkv, D), (B, K, Hkv, D), (B, S, H, D))))
    def grads(impl):
        f = lambda q, k, v: jax_baracuda.flash_attention(q, k, v, implementation=impl, **kw)
        return jax.jit(lambda q, k, v, g: jax.vjp(f, q, k, v)[1](g))
    ours = grads("cuda")(q, k, v, g)
    f32 = lambda x: x.astype(jnp.float32)
    theirs = grads("reference")(f32(q), f32(k), f32(v), f32(g))
    e = [float(jnp.linalg.norm(f32(a) - b) / jnp.linalg.norm(b)) for a, b in zip(ours, theirs)]
    print("ok  " if max(e) < 0.012 else "FAIL", name, ["%.4f" % x for x in e], flush=True)
c = dict(is_causal=True)
run("causal groups 2 waves", 2, 2560, 2560, 8, 2, 128, **c)
run("causal groups, rest", 3, 2300, 2300, 6, 2, 128, **c)
run("cap causal groups", 2, 2304, 2304, 8, 2, 128, logits_soft_cap=20.0, **c)
run("cap full groups", 2, 1000, 1200, 8, 2, 128, logits_soft_cap=20.0)
run("cap causal det", 2, 1500, 1500, 8, 2, 128, logits_soft_cap=20.0, deterministic=True, **c)
run("window groups", 2, 2300, 2300, 8, 2, 128, local_window_size=(300, 0), **c)
run("full groups", 2, 1111, 1234, 8, 2, 128)
run("keys longer", 2, 2100, 2900, 8, 2, 128, **c)
run("rows longer", 2, 2900, 2100, 8, 2, 128, **c)
