"""jax.disable_jit, with which users debug: every op runs under it and gives what it gives else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_baracuda
from jax_baracuda.quant import Int4Weight

B, S, H, HKV, D, PAGE = 2, 6, 4, 2, 8, 4


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


ROWS = normal(0, B, S, H, D)
QUERY, KEY, CACHE = normal(1, B, H, D), normal(2, B, HKV, 1, D), normal(3, B, HKV, 2 * PAGE, D)
PAGES, TOKENS = normal(4, 5, HKV, PAGE, D), normal(5, B, HKV, D)
LENGTHS = jnp.array([5, 2])
TABLE = (jnp.array([1, 2, 4]), jnp.array([0, 2, 3]))


def attention():
    def loss(query, bias):
        out = jax_baracuda.flash_attention(query, ROWS[:, :, :2], ROWS[:, :, 2:], bias=bias)
        return jnp.sum(out**2)

    return jax.value_and_grad(loss, argnums=(0, 1))(ROWS, normal(6, 1, H, S, S))


CALLS = {
    "flash_attention": attention,
    "flash_decode": lambda: jax_baracuda.flash_decode(QUERY, CACHE, CACHE, LENGTHS),
    "paged_decode": lambda: jax_baracuda.paged_decode(
        QUERY, PAGES, PAGES, *TABLE, jnp.array([1, 2])
    ),
    "kv_cache_append": lambda: jax_baracuda.kv_cache_append(CACHE, CACHE, KEY, KEY, LENGTHS),
    "paged_append": lambda: jax_baracuda.paged_append(
        PAGES, PAGES, TOKENS, TOKENS, jnp.array([0, 1]), LENGTHS, *TABLE
    ),
    "apply_rope": lambda: jax.grad(
        lambda x: jnp.sum(jax_baracuda.apply_rope(x, jnp.arange(S)) ** 3)
    )(ROWS),
    "int4_matmul": lambda: jax_baracuda.int4_matmul(
        normal(7, 3, 64), Int4Weight.quantize(normal(8, 64, 32), group_size=32)
    ),
    "merge_attention_states": lambda: jax_baracuda.merge_attention_states(
        QUERY, QUERY[..., 0], 2 * QUERY, QUERY[..., 1]
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_without_jit(name):
    want = CALLS[name]()
    with jax.disable_jit():
        got = CALLS[name]()
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
