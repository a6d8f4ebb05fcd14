"""The gradient of a bias with one row, through JAX: against the reference; the same bits over repeats."""
import functools, sys, time
import jax, jax.numpy as jnp, numpy as np
import jax_baracuda as jb
T = time.time()
def case(name, B, S, K, Hq, Hkv, D, shape, t="bfloat16", bt="float32", det=False, cu=None, seed=0, **o):
    ks = jax.random.split(jax.random.key(seed), 5)
    n = lambda k, *s: jax.random.normal(k, s, jnp.float32).astype(t)
    q, k, v, g = n(ks[0], B, S, Hq, D), n(ks[1], B, K, Hkv, D), n(ks[2], B, K, Hkv, D), n(ks[3], B, S, Hq, D)
    bias = jax.random.normal(ks[4], shape, jnp.float32).astype(bt)
    def loss(impl, q, k, v, bias, dtype):
        q, k, v = (x.astype(dtype) for x in (q, k, v))
        if cu is None: out = jb.flash_attention(q, k, v, bias=bias, deterministic=det, implementation=impl, **o)
        else:
            c = jnp.asarray(cu, jnp.int32)
            out = jb.flash_attention_varlen(q[0], k[0], v[0], c, c, max_seqlen_q=shape[3], max_seqlen_k=shape[3], bias=bias, deterministic=det, implementation=impl, **o)[None]
        return jnp.sum(out.astype(jnp.float32) * g.astype(jnp.float32))
    mine = jax.jit(jax.grad(lambda *a: loss("cuda", *a, t), argnums=(0, 1, 2, 3)))
    ref = jax.jit(jax.grad(lambda *a: loss("reference", *a, jnp.float32), argnums=(0, 1, 2, 3)))
    want, got = ref(q, k, v, bias), mine(q, k, v, bias)
    err = [float(jnp.linalg.norm((a.astype(jnp.float32) - b.astype(jnp.float32)).ravel()) / jnp.linalg.norm(b.astype(jnp.float32).ravel())) for a, b in zip(got, want)]
    same = all(bool((mine(q, k, v, bias)[3] == got[3]).all()) for _ in range(30))
    ok = max(err) < 1.5e-2 and same
    print("ok" if ok else "FAIL", name, " ".join(f"{e:.1e}" for e in err), "" if same else "DIFFERS", f"t={time.time()-T:.0f}", flush=True)
    return ok
C = [
    ("full", 2, 300, 400, 4, 4, 128, (1, 4, 300, 400), dict(is_causal=True, bt="bfloat16")),
    ("full f32", 2, 333, 250, 4, 2, 64, (2, 1, 333, 250), dict(is_causal=True)),
    ("full own, lengths", 3, 400, 400, 4, 2, 64, (3, 4, 400, 400), dict(bt="bfloat16", key_value_seq_lengths=jnp.array([400, 77, 0]), query_seq_lengths=jnp.array([400, 300, 200]))),
    ("full packed", 1, 1200, 1200, 4, 2, 128, (1, 4, 600, 600), dict(cu=(0, 300, 310, 900, 1200), is_causal=True)),
    ("full window", 2, 500, 500, 4, 4, 64, (1, 1, 500, 500), dict(local_window_size=(100, 50), sink_tokens=3)),
    ("full, cap", 2, 300, 300, 2, 2, 64, (1, 2, 300, 300), dict(logits_soft_cap=10.0)),
    ("row per head", 2, 500, 600, 8, 8, 128, (1, 8, 1, 600), dict(is_causal=True)),
    ("row per batch, groups", 3, 700, 700, 8, 2, 64, (3, 1, 1, 700), dict(is_causal=True)),
    ("row bf16, lengths", 3, 600, 600, 4, 2, 128, (1, 4, 1, 600), dict(bt="bfloat16", key_value_seq_lengths=jnp.array([600, 77, 0]), query_seq_lengths=jnp.array([600, 500, 300]))),
    ("row deterministic", 2, 500, 700, 4, 2, 64, (1, 4, 1, 700), dict(det=True, is_causal=True)),
    ("row packed, one", 1, 1200, 1200, 4, 2, 64, (1, 1, 1, 600), dict(cu=(20, 300, 310, 900, 1100))),
    ("row there and back", 1, 2500, 2500, 32, 8, 128, (1, 32, 1, 2500), dict(is_causal=True)),
    ("full deterministic", 2, 300, 300, 4, 2, 64, (1, 4, 300, 300), dict(det=True, is_causal=True)),
]
bad = 0
for name, *sizes, o in C:
    try: bad += not case(name, *sizes, **o)
    except Exception as e: bad += 1; print("FAIL", name, type(e).__name__, str(e)[:300], flush=True)
# vmap: an own gradient for each example of a bias that is not mapped
def one(q, b): return jnp.sum(jb.flash_attention(q, q, q, bias=b, implementation="cuda").astype(jnp.float32) ** 2)
q = jax.random.normal(jax.random.key(1), (3, 2, 256, 4, 64), jnp.bfloat16); b = jax.random.normal(jax.random.key(2), (1, 4, 256, 256))
got = jax.vmap(jax.grad(one, 1), (0, None))(q, b)
want = jnp.stack([jax.grad(one, 1)(x, b) for x in q])
print("ok" if bool(jnp.allclose(got, want, atol=1e-3, rtol=1e-3)) else "FAIL", "vmap", got.shape)
print("bad", bad, f"t={time.time()-T:.0f}")
