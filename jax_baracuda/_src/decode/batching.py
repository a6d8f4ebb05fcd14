"""vmap of flash_decode: N queries on one cache are more heads of it, other mixes a larger batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

Dims = Sequence[int | None]


def batch(primitive: Primitive, args: Sequence[jax.Array], dims: Dims, **params: Any) -> Any:
    """vmap folds the mapped axis into the head group if the requests share a cache, else into B."""
    size = mapped_size(args, dims)
    bind = functools.partial(primitive.bind, **params)
    if size and all(dim is None for dim in dims[1:4]):
        kv_heads = args[1].shape[2 if params["nhd"] else 1]
        return fold_into_group(bind, size, kv_heads, args, dims)
    return _fold_into_batch(bind, size, args, dims)


def mapped_size(args: Sequence[jax.Array], dims: Dims) -> int:
    """How many examples there are."""
    return next(a.shape[dim] for a, dim in zip(args, dims, strict=True) if dim is not None)


def fold_into_group(
    bind: Callable[..., Any], size: int, kv_heads: int, args: Sequence[jax.Array], dims: Dims
) -> tuple[Any, Any]:
    """N queries on one cache are N times the query heads: no copy of the cache, and one read.

    Only the first operand, the query, and the last two, which are per head, may be mapped.
    """

    def fold(array: jax.Array, dim: int | None) -> jax.Array:
        """[B, Hq, ...], mapped or not -> [B, Hkv * N * group, ...]."""
        if is_missing(array):
            return array
        array = map_at(0, array, dim, size)
        rows, q_heads, *rest = array.shape[1:]
        split = array.reshape(size, rows, kv_heads, q_heads // kv_heads, *rest)
        return jnp.moveaxis(split, 0, 2).reshape(rows, size * q_heads, *rest)

    def unfold(array: jax.Array) -> jax.Array:
        """[B, Hkv * N * group, ...] -> [N, B, Hq, ...]."""
        rows, heads, *rest = array.shape
        split = array.reshape(rows, kv_heads, size, heads // size // kv_heads, *rest)
        return jnp.moveaxis(split, 2, 0).reshape(size, rows, heads // size, *rest)

    query, *shared = args[:-2]
    per_head = [fold(array, dim) for array, dim in zip(args[-2:], dims[-2:], strict=True)]
    out, lse = bind(fold(query, dims[0]), *shared, *per_head)
    return (unfold(out), unfold(lse)), (0, 0)


def _fold_into_batch(
    bind: Callable[..., Any], size: int, args: Sequence[jax.Array], dims: Dims
) -> tuple[Any, Any]:
    """N batches of B requests are N * B requests."""
    requests = map_at(0, args[0], dims[0], size).shape[1]
    # Next to the batch on either side, the mapped axis of a cache folds without moving any data.
    at = 1 if dims[1] == dims[2] == 1 else 0
    lead = (requests, size) if at else (size, requests)

    def fold(index: int, array: jax.Array, dim: int | None) -> jax.Array:
        one_row = index >= 4 and dim is None and array.shape[0] == 1
        if is_missing(array) or one_row:  # a row [1, Hq] holds for every request
            return array
        array = map_at(at, array, dim, size)
        rest = array.shape[2:]
        return jnp.broadcast_to(array, (*lead, *rest)).reshape(size * requests, *rest)

    results = bind(
        *(
            fold(index, array, dim)
            for index, (array, dim) in enumerate(zip(args, dims, strict=True))
        )
    )
    return [array.reshape(*lead, *array.shape[1:]) for array in results], (at, at)


def map_at(at: int, array: jax.Array, dim: int | None, size: int) -> jax.Array:
    """``array`` with its mapped axis, which it may lack, at ``at``."""
    if dim is not None:
        return jnp.moveaxis(array, dim, at)
    array = jnp.expand_dims(array, at)
    return jnp.broadcast_to(array, (*array.shape[:at], size, *array.shape[at + 1 :]))


def is_missing(array: jax.Array) -> bool:
    """Whether an optional operand was not given: only then is it one empty dimension."""
    return array.shape == (0,)
