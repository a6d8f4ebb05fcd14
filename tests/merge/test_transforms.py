"""merge_attention_states under jax's transformations."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_baracuda import flash_decode, merge_attention_states
from jax_baracuda.testing import compare

B, H, D, N = 4, 8, 16, 3


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def states(*lead):
    """(out_a, lse_a, out_b, lse_b) with a few -inf."""
    lses = [normal(*lead, H, seed=seed) for seed in (1, 2)]
    lses[0][..., 0] = lses[1][..., 1] = lses[0][..., 2] = lses[1][..., 2] = -np.inf
    return normal(*lead, H, D), lses[0], normal(*lead, H, D, seed=3), lses[1]


def assert_same(got, want):
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_jit_and_vmap_over_every_mix():
    args = states(N, B)
    want = merge_attention_states(*args)
    assert_same(jax.jit(merge_attention_states)(*args), want)
    for mapped in range(1, 16):
        axes = [0 if mapped >> i & 1 else None for i in range(4)]
        given = [a if axis == 0 else a[1] for a, axis in zip(args, axes, strict=True)]
        got = jax.vmap(merge_attention_states, in_axes=axes)(*given)
        full = [a if axis == 0 else np.stack([a] * N) for a, axis in zip(given, axes, strict=True)]
        assert_same(got, merge_attention_states(*full))


def test_a_scan_from_the_empty_state():
    outs, lses, *_ = states(N, B)
    empty = jnp.zeros((B, H, D)), jnp.full((B, H), -jnp.inf)

    @jax.jit
    def scanned(outs, lses):
        return jax.lax.scan(
            lambda state, part: (merge_attention_states(*state, *part), None), empty, (outs, lses)
        )[0]

    parts = list(zip(outs, lses, strict=True))
    want = functools.reduce(lambda a, b: merge_attention_states(*a, *b), parts)
    assert_same(scanned(outs, lses), want)
    gradients = jax.grad(lambda o, s: (scanned(o, s)[0] ** 2).sum(), (0, 1))(outs, lses)
    assert all(np.isfinite(g).all() for g in gradients)
    assert not np.any(gradients[0][:, :, 0])  # no part of head 0 saw a key


def test_the_derivative_keeps_the_arguments_and_nothing_else():
    """No float32 copies of 16-bit outputs between the passes."""
    out_a, lse_a, out_b, lse_b = states(B)
    given = [jnp.asarray(a, jnp.bfloat16) for a in (out_a, out_b)]
    _, pullback = jax.vjp(
        lambda a, b: merge_attention_states(a, lse_a, b, lse_b), given[0], given[1]
    )
    kept = [leaf for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "shape")]
    assert kept
    assert sum(leaf.nbytes for leaf in kept) <= sum(a.nbytes for a in (*given, lse_a, lse_b))


def test_grad_under_vmap_and_jvp():
    args = states(N, B)

    def loss(*state):
        out, lse = merge_attention_states(*state)
        return (out**2).sum() + jnp.where(lse == -jnp.inf, 0, lse).sum()

    gradient = jax.grad(loss, argnums=(0, 1, 2, 3))
    got = jax.vmap(gradient)(*args)
    rows = [gradient(*(a[i] for a in args)) for i in range(N)]
    want = [np.stack(parts) for parts in zip(*rows, strict=True)]
    assert_same(got, want)
    tangents = [np.cos(a) if np.isfinite(a).all() else np.ones_like(a) for a in args]
    _, change = jax.jvp(loss, args, tuple(tangents))
    products = [np.vdot(g, t) for g, t in zip(gradient(*args), tangents, strict=True)]
    np.testing.assert_allclose(change, sum(products), rtol=1e-4)


def mesh_of(devices, kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind), devices=devices)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_jit_of_sharded_states_moves_nothing(eight_devices, kind):
    mesh = mesh_of(eight_devices, kind)
    sharding = NamedSharding(mesh, P("x", "y"))
    args = [jax.device_put(a, sharding) for a in states(B)]
    function = jax.jit(merge_attention_states)
    assert not re.search("all-|collective-", function.lower(*args).compile().as_text())
    got = function(*args)
    assert all(a.sharding.is_equivalent_to(sharding, a.ndim) for a in got)
    assert_same(got, merge_attention_states(*states(B)))


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(eight_devices, check_vma):
    """One long cache spread over eight devices: each decodes its part, the states are merged."""
    mesh = jax.make_mesh((8,), ("k",), axis_types=(AxisType.Auto,), devices=eight_devices)
    query, key, value = normal(B, H, D), normal(B, 2, 64, D), normal(B, 2, 64, D, seed=1)
    lengths = np.array([64, 30, 1, 0], np.int32)

    def local(query, key, value, lengths):
        rows = key.shape[2]
        here = jnp.clip(lengths - jax.lax.axis_index("k") * rows, 0, rows)
        out, lse = flash_decode(query, key, value, here, return_lse=True)
        outs, lses = jax.lax.all_gather((out, lse), "k")
        states = [(outs[i], lses[i]) for i in range(8)]
        return functools.reduce(lambda a, b: merge_attention_states(*a, *b), states)

    out_spec = P("k") if check_vma else P()  # all_gather's type says that devices may differ
    cache = P(None, None, "k")
    out, lse = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(P(), cache, cache, P()),
            out_specs=(out_spec, out_spec),
            check_vma=check_vma,
        )
    )(query, key, value, lengths)
    want = flash_decode(query, key, value, lengths, return_lse=True)
    np.testing.assert_allclose(out[:B], want[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse[:B], want[1], rtol=1e-5, atol=1e-6)


def test_shard_map_of_one_varying_state(eight_devices):
    """Types under check_vma: the result varies over what any argument varies over."""
    mesh = jax.make_mesh((8,), ("k",), axis_types=(AxisType.Auto,), devices=eight_devices)
    out_a, lse_a, out_b, lse_b = states(8)

    def loss(out_a, lse_a, out_b, lse_b):
        mapped = jax.shard_map(
            merge_attention_states, mesh=mesh, in_specs=(P("k"), P("k"), P(), P()), out_specs=P("k")
        )
        return (mapped(out_a, lse_a, out_b, lse_b)[0] ** 2).sum()

    def plain(out_a, lse_a, out_b, lse_b):
        rows = [
            merge_attention_states(out_a[i : i + 1], lse_a[i : i + 1], out_b, lse_b)[0]
            for i in range(8)
        ]
        return sum((row**2).sum() for row in rows)

    args = out_a, lse_a, out_b[:1], lse_b[:1]
    got = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*args)
    want = jax.grad(plain, (0, 1, 2, 3))(*args)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_fused_on_a_gpu(dtype):
    """XLA fuses each of the two results; they are those of the CPU."""
    args = states(64)
    args = [jnp.asarray(a, dtype if a.ndim == 3 else jnp.float32) for a in args]
    compiled = jax.jit(merge_attention_states).lower(*args).compile()
    entry = compiled.as_text().split("ENTRY", 1)[1]
    kernels = re.findall(r" = \S.* (fusion|custom-call|copy|transpose|reduce)\(", entry)
    assert kernels in (["fusion"], ["fusion", "fusion"])
    with jax.default_device(jax.devices("cpu")[0]):
        want = merge_attention_states(*map(np.asarray, args))
    exact = np.asarray(want[0], np.float64)
    compare(compiled(*args)[0], exact, exact, epsilon=1e-2 if dtype == "bfloat16" else 1e-5).check()
