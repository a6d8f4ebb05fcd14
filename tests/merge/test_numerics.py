"""merge_attention_states against attention over all the keys, in float64."""

from __future__ import annotations

import functools
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from jax_baracuda import flash_attention, flash_decode, merge_attention_states
from jax_baracuda.testing import compare

DTYPES = ("float16", "bfloat16", "float32")
F32 = float(np.finfo(np.float32).eps)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def attention(query, keys, values):
    """float64 attention of query [..., D] over keys [..., K, D]: (out, lse)."""
    logits = np.einsum("...d,...kd->...k", query, keys)
    if not logits.shape[-1]:
        return np.zeros(query.shape), np.full(query.shape[:-1], -np.inf)
    top = logits.max(-1, keepdims=True)
    weights = np.exp(logits - top)
    total = weights.sum(-1, keepdims=True)
    out = np.einsum("...k,...kd->...d", weights / total, values)
    return out, (top + np.log(total))[..., 0]


def split_attention(shape, splits, seed=0):
    """The states over the parts of a key axis, and the one over the whole, in float64."""
    rows = sum(splits)
    query = 2 * normal(*shape, seed=seed)
    keys, values = (normal(*shape[:-1], rows, shape[-1], seed=seed + i) for i in (1, 2))
    bounds = np.cumsum([0, *splits])
    parts = [
        attention(query, keys[..., a:b, :], values[..., a:b, :])
        for a, b in itertools.pairwise(bounds)
    ]
    return parts, attention(query, keys, values)


def check(got, parts, whole, dtype):
    """At most twice the error that rounding the states to the dtype makes, and one rounding."""
    out, lse = got
    assert out.dtype == dtype
    assert lse.dtype == jnp.float32
    rounded = np.zeros(whole[0].shape)
    for part, part_lse in parts:
        seen = part_lse > -np.inf
        share = np.exp(np.where(seen, part_lse, 0) - np.where(seen, whole[1], 0))
        rounded += np.where(seen, share, 0)[..., None] * part.astype(dtype).astype(np.float64)
    rounded = rounded.astype(dtype)
    scale = max(1.0, np.abs(whole[0]).max(initial=0))
    unit = float(ml_dtypes.finfo(dtype).eps) * scale
    compare(out, whole[0], rounded, name="out", epsilon=unit / 2 + 8 * F32 * scale).check()
    size = np.abs(whole[1][np.isfinite(whole[1])]).max(initial=1)
    compare(lse, whole[1], whole[1].astype(np.float32), name="lse", epsilon=4 * F32 * size).check()


def cast(part, dtype):
    return part[0].astype(dtype), part[1].astype(np.float32)


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=4).map(tuple),
    head_dim=st.integers(1, 9),
    splits=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    dtype=st.sampled_from(DTYPES),
)
def test_two_states_of_any_shape(shape, head_dim, splits, dtype):
    dtype = jnp.dtype(dtype)
    parts, whole = split_attention((*shape, head_dim), splits)
    got = merge_attention_states(*cast(parts[0], dtype), *cast(parts[1], dtype))
    check(got, parts, whole, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_states_in_any_order(dtype):
    """Associative and commutative: bracketings and orders differ by rounding."""
    dtype = jnp.dtype(dtype)
    parts, whole = split_attention((3, 5, 16), (7, 0, 1, 90, 0, 30))
    states = [cast(part, jnp.float32) for part in parts]

    def merge(a, b):
        return merge_attention_states(*a, *b)

    left = functools.reduce(merge, states)
    right = functools.reduce(lambda a, b: merge(b, a), reversed(states))
    shuffled = functools.reduce(merge, [states[i] for i in (3, 1, 5, 0, 2, 4)])
    tree = merge(merge(states[0], states[1]), merge(merge(states[2], states[3]), states[4]))
    tree = merge(tree, states[5])
    for got in (left, right, shuffled, tree):
        out, lse = merge_attention_states(
            jnp.zeros(whole[0].shape, dtype), jnp.full(whole[1].shape, -jnp.inf), *got
        )
        check((out, lse), [whole], whole, dtype)


def test_associative_scan():
    """Every prefix of a row of states at once: the operation is a monoid's."""
    parts, _ = split_attention((2, 8), (3, 4, 0, 5, 6))
    outs, lses = (jnp.stack([cast(part, np.float32)[i] for part in parts]) for i in (0, 1))
    out, lse = jax.lax.associative_scan(
        lambda a, b: merge_attention_states(*a, *b), (outs, lses), axis=0
    )
    for count in range(1, 6):
        states = zip(outs[:count], lses[:count], strict=True)
        want = functools.reduce(lambda a, b: merge_attention_states(*a, *b), states)
        np.testing.assert_allclose(out[count - 1], want[0], atol=1e-6)
        np.testing.assert_allclose(lse[count - 1], want[1], atol=1e-6)


@pytest.mark.parametrize("large", [80.0, 1e4, 1e30])
def test_far_apart_states_neither_overflow_nor_underflow(large):
    out_a, out_b = normal(2, 3, 4).astype(np.float32), normal(2, 3, 4, seed=1).astype(np.float32)
    for sign in (1, -1):
        lse_a = np.full((2, 3), sign * large, np.float32)
        out, lse = merge_attention_states(out_a, lse_a, out_b, lse_a + np.float32(1))
        share = 0.0 if lse_a[0, 0] + np.float32(1) == lse_a[0, 0] else 1.0
        weight = 1 / (1 + np.exp(share))
        np.testing.assert_allclose(out, weight * out_a + (1 - weight) * out_b, rtol=1e-4, atol=1e-5)
        assert np.isfinite(lse).all()
        apart = merge_attention_states(out_a, lse_a, out_b, -lse_a)
        np.testing.assert_array_equal(apart[0], out_a if sign > 0 else out_b)
        np.testing.assert_array_equal(apart[1], np.abs(lse_a))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", [0.0, np.nan, np.inf])
def test_a_state_without_keys_leaves_the_other_as_it_is(dtype, other):
    """Bit for bit; its own output is not looked at."""
    dtype = jnp.dtype(dtype)
    out_a, lse_a = normal(4, 6, 8).astype(dtype), normal(4, 6, seed=1).astype(np.float32)
    unused, nothing = np.full((4, 6, 8), other).astype(dtype), np.full((4, 6), -np.inf, np.float32)
    for pair in (
        (out_a, lse_a, unused, nothing),
        (unused, nothing, out_a, lse_a),
    ):
        out, lse = merge_attention_states(*pair)
        np.testing.assert_array_equal(out.astype(np.float32), out_a.astype(np.float32))
        np.testing.assert_array_equal(lse, lse_a)
    out, lse = merge_attention_states(unused, nothing, unused, nothing)
    assert not np.any(out)
    assert np.isneginf(lse).all()


def test_the_output_has_the_dtype_of_the_first():
    ones = np.ones((2, 4), np.float32)
    lse = np.zeros(2, np.float32)
    for first in DTYPES:
        for second in DTYPES:
            out, merged = merge_attention_states(
                ones.astype(jnp.dtype(first)), lse.astype(jnp.float16), ones.astype(second), lse
            )
            assert out.dtype == jnp.dtype(first)
            assert merged.dtype == jnp.float32
            np.testing.assert_array_equal(out.astype(np.float32), ones)


# Gradients


def plain_merge(out_a, lse_a, out_b, lse_b):
    """The definition, for finite states; in float64 under jax_enable_x64."""
    lse = jnp.logaddexp(lse_a, lse_b)
    shares = jnp.exp(lse_a - lse)[..., None], jnp.exp(lse_b - lse)[..., None]
    return shares[0] * out_a + shares[1] * out_b, lse


def loss(merge, cotangents, *state):
    out, lse = merge(*state)
    return (cotangents[0] * jnp.sin(out)).sum() + (cotangents[1] * lse**2).sum()


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_are_those_of_the_definition(order):
    state = [normal(3, 4), 2 * normal(3), normal(3, 4, seed=1), 2 * normal(3, seed=2)]
    cotangents = normal(3, 4, seed=3), normal(3, seed=4)
    derivative = jax.grad if order == 1 else jax.hessian
    with jax.enable_x64(True):
        exact = derivative(functools.partial(loss, plain_merge, cotangents), (0, 1, 2, 3))(*state)
    exact, tree = jax.tree.flatten(jax.tree.map(np.asarray, exact))
    narrow = jax.tree.map(lambda array: array.astype(np.float32), (cotangents, state))
    ours = functools.partial(loss, merge_attention_states, narrow[0])
    got = jax.jit(derivative(ours, argnums=(0, 1, 2, 3)))(*narrow[1])
    got, same = jax.tree.flatten(got)
    assert tree == same
    for ours, theirs in zip(got, exact, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("dtype", "junk"), [("float32", 0.0), ("bfloat16", np.nan)])
def test_gradients_of_states_without_keys(dtype, junk):
    """Rows: both states seen, only a, only b, neither. No NaN; what was not seen has gradient 0."""
    dtype = jnp.dtype(dtype)
    seen = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], bool)
    outs = np.where(seen.T[..., None], normal(2, 4, 8), junk).astype(dtype)
    lses = np.where(seen.T, normal(2, 4, seed=1), -np.inf).astype(np.float32)
    weights = normal(4, 8, seed=2).astype(np.float32), normal(4, seed=3).astype(np.float32)

    def total(out_a, lse_a, out_b, lse_b):
        out, lse = merge_attention_states(out_a, lse_a, out_b, lse_b)
        return (out.astype(jnp.float32) * weights[0]).sum() + (
            jnp.where(seen.any(1), lse, 0) * weights[1]
        ).sum()

    state = outs[0], lses[0], outs[1], lses[1]
    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(*state)
    hessian = jax.jit(jax.hessian(total, argnums=(1, 3)))(*state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, hessian)))
    for side in (0, 1):
        unseen = ~seen[:, side]
        d_out, d_lse = gradients[2 * side : 2 * side + 2]
        assert d_out.dtype == dtype
        assert not np.any(d_out[unseen])
        assert not np.any(d_lse[unseen])
        alone = seen[:, side] & ~seen[:, 1 - side]
        np.testing.assert_array_equal(
            d_out[alone].astype(np.float32), weights[0][alone].astype(dtype).astype(np.float32)
        )
        np.testing.assert_allclose(d_lse[alone], weights[1][alone], rtol=1e-6)
    assert not any(np.any(leaf[3]) for leaf in jax.tree.leaves(hessian))


def wide_attention(query, key, value):
    """float64 under jax_enable_x64: (out [B, S, H, D], lse [B, H, S])."""
    logits = jnp.einsum("bshd,bkhd->bhsk", query, key) / np.sqrt(query.shape[-1])
    lse = jax.nn.logsumexp(logits, axis=-1)
    out = jnp.einsum("bhsk,bkhd->bshd", jnp.exp(logits - lse[..., None]), value)
    return out, lse


def split_flash_attention(query, key, value, *, splits, implementation=None):
    """Attention in parts of the key axis, merged."""
    states = []
    for part in np.split(np.arange(key.shape[1]), splits):
        out, lse = flash_attention(
            query, key[:, part], value[:, part], return_lse=True, implementation=implementation
        )
        states.append((out, lse.swapaxes(1, 2)))
    out, lse = functools.reduce(lambda a, b: merge_attention_states(*a, *b), states)
    return out, lse.swapaxes(1, 2)


def check_through_flash_attention(dtype, implementation, tolerance):
    shape, keys = (2, 5, 3, 8), (2, 12, 3, 8)
    arrays = [normal(*shape), normal(*keys), normal(*keys, seed=1)]
    cotangents = normal(*shape, seed=2), normal(2, 3, 5, seed=3)
    arrays = [array.astype(dtype) for array in arrays]

    def total(function, query, key, value):
        out, lse = function(query, key, value)
        return (cotangents[0] * out).sum() + (cotangents[1] * lse).sum()

    with jax.enable_x64(True):
        wide = [array.astype(np.float64) for array in arrays]
        exact = (
            *wide_attention(*wide),
            *jax.grad(functools.partial(total, wide_attention), (0, 1, 2))(*wide),
        )
        exact = [np.asarray(array) for array in exact]
    # An empty part, one key, and the rest.
    split = functools.partial(split_flash_attention, splits=[0, 1], implementation=implementation)
    got = *split(*arrays), *jax.jit(jax.grad(functools.partial(total, split), (0, 1, 2)))(*arrays)
    for ours, theirs in zip(got, exact, strict=True):
        np.testing.assert_allclose(
            np.asarray(ours, np.float64), theirs, rtol=tolerance, atol=tolerance
        )


def test_value_and_gradient_through_flash_attention():
    check_through_flash_attention(np.float32, None, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_value_and_gradient_through_the_kernels(dtype, tolerance):
    check_through_flash_attention(jnp.dtype(dtype), "cuda", tolerance)


def test_a_cache_in_parts():
    """flash_decode over parts of a cache, empty ones among them, is flash_decode over all of it."""
    query, key, value = normal(3, 8, 16), normal(3, 2, 40, 16), normal(3, 2, 40, 16, seed=1)
    query, key, value = (array.astype(np.float32) for array in (query, key, value))
    lengths = np.array([40, 11, 0], np.int32)
    whole = flash_decode(query, key, value, lengths, return_lse=True)
    parts = [
        flash_decode(
            query, key[:, :, a:b], value[:, :, a:b], np.clip(lengths - a, 0, b - a), return_lse=True
        )
        for a, b in ((0, 0), (0, 11), (11, 32), (32, 40))
    ]
    merged = functools.reduce(lambda a, b: merge_attention_states(*a, *b), parts)
    for ours, theirs in zip(merged, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
