"""Calls from many threads at a time give what they give one after another."""

from __future__ import annotations

import concurrent.futures
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jax_baracuda import apply_rope, flash_attention, flash_decode

THREADS, REPEATS = 6, 5


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def decode(head_dim: int) -> list[jax.Array]:
    query, cache = normal(0, 3, 4, head_dim), normal(1, 3, 2, 65, head_dim)
    return [flash_decode(query, cache, cache, jnp.array([65, 1, 30]))]


def train(head_dim: int) -> list[jax.Array]:
    query, key = normal(2, 1, 70, 4, head_dim), normal(3, 1, 70, 2, head_dim)

    def loss(query: jax.Array, key: jax.Array) -> jax.Array:
        out = flash_attention(query, key, key, is_causal=True, deterministic=True)
        return out.astype(jnp.float32).var()

    return list(jax.grad(loss, argnums=(0, 1))(query, key))


def rotate(head_dim: int) -> list[jax.Array]:
    return [apply_rope(normal(4, 70, 4, head_dim), jnp.arange(70))]


def test_threads():
    """Each thread compiles and starts programs of its own, and runs those of the others too.

    On a GPU that is where kernels are loaded and set up for the first time.
    """
    sizes = (32, 64, 96, 128) if jax.default_backend() == "gpu" else (32,)
    programs = [
        jax.jit(functools.partial(op, size)) for op in (decode, train, rotate) for size in sizes
    ]

    def run(first: int) -> list[list[list[np.ndarray]]]:
        order = [(first + i) % len(programs) for i in range(len(programs))]
        results = {
            i: [[np.asarray(x) for x in programs[i]()] for _ in range(REPEATS)] for i in order
        }
        return [results[i] for i in range(len(programs))]

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(run, range(THREADS)))
    jax.block_until_ready(alone := [program() for program in programs])
    for results in together:
        for repeats, want in zip(results, alone, strict=True):
            for got in repeats:
                for x, y in zip(got, want, strict=True):
                    np.testing.assert_array_equal(x.view(np.uint16), np.asarray(y).view(np.uint16))
