"""Random arrays for the paged benchmark: all cut from the same numbers, which compiles quickly."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

_NUMBERS = 1 << 27  # a quarter of a gigabyte, far larger than the L2 cache


@functools.cache
def _drawn(mean: float) -> jax.Array:
    numbers = min(_NUMBERS, 1 << 20) if jax.default_backend() == "cpu" else _NUMBERS
    noise = jax.random.normal(jax.random.key(int(mean)), (numbers,), jnp.bfloat16)
    return noise + jnp.bfloat16(mean)


@functools.partial(jax.jit, static_argnums=2)
def _tile(drawn: jax.Array, offset: Any, shape: tuple[int, ...]) -> jax.Array:
    # In rows: a count of elements may be past what an int32 holds.
    width = math.prod(shape[-2:])
    rows = math.prod(shape) // width
    block = max(1, min(rows, drawn.size // 2 // width))

    def fill(index: Any, array: jax.Array) -> jax.Array:
        source = (offset + index * 4099 * 64) % (drawn.size - block * width + 1)
        numbers = jax.lax.dynamic_slice(drawn, (source,), (block * width,))
        # The last block is moved back, to end with the array.
        block_rows = numbers.reshape(block, width)
        return jax.lax.dynamic_update_slice(array, block_rows, (index * block, 0))

    array = jnp.zeros((rows, width), drawn.dtype)
    return jax.lax.fori_loop(0, -(-rows // block), fill, array).reshape(shape)


def normal(shape: tuple[int, ...], seed: int, mean: float = 0.0) -> jax.Array:
    """bfloat16, variance 1."""
    drawn = _drawn(mean)
    return _tile(drawn, jnp.int32(seed * 1000003 % drawn.size), shape)


def keys_and_values(shape: tuple[int, ...], seed: int) -> tuple[jax.Array, jax.Array]:
    """The values' mean of 1 keeps a chain of outputs, each the next query, near size 1."""
    return normal(shape, 2 * seed), normal(shape, 2 * seed + 1, mean=1.0)


def struct(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    """An array to compile for."""
    return jax.ShapeDtypeStruct(shape, dtype)


def structs(arrays: Any) -> Any:
    """Those of a tree of arrays."""
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), arrays)
