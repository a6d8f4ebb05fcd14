"""vmap of the primitives: the mapped axis becomes one of layers, or folds into them.

Nothing is moved where the mapped axis of the stores comes first. New rows for a store that is not
mapped would need a copy of it for every example, which is refused. A query that is mapped alone
becomes more heads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

Dims = Sequence[int | None]
Batched = tuple[list[Any], list[int | None]]

_QUERY, _FREQUENCIES = 4, 5  # among the operands of an append


def rope(primitive: Primitive, args: Sequence[jax.Array], dims: Dims, **params: Any) -> Batched:
    """The mapped axis is one more leading axis."""
    size = _size(args, dims)
    x, positions = (_mapped(array, dim, size) for array, dim in zip(args[:2], dims, strict=False))
    if dims[2] is not None:
        raise NotImplementedError("apply_rope: the frequencies are mapped, which no caller does.")
    return primitive.bind(x, positions, args[2], **params), [0]


def append(
    op: str, primitive: Primitive, args: Sequence[jax.Array], dims: Dims, **params: Any
) -> Batched:
    """N stores are the layers of one store, or N times its layers; each row has its own layer."""
    if dims[0] is None or dims[1] is None:
        heads = 2 if op == "kv_cache_append" and params["nhd"] else 1
        return _only_the_query(op, heads, primitive, args, dims, params)
    size = _size(args, dims)
    mapped = [
        # A missing query stays missing, and all examples share the frequencies.
        array
        if index == _FREQUENCIES or (index == _QUERY and array.shape == (0,))
        else _mapped(array, dim, size)
        for index, (array, dim) in enumerate(zip(args, dims, strict=True))
    ]
    stores, rows, inv_freq = mapped[:2], mapped[2:_FREQUENCIES], mapped[_FREQUENCIES]
    *index, layers = mapped[_FREQUENCIES + 1 :]
    if op == "paged_append":
        index = _one_table(size, *index)

    example = jnp.arange(size, dtype=jnp.int32)[:, None]
    stacked = stores[0].ndim == 6
    if stacked:
        count = stores[0].shape[1]
        layers = jnp.where((layers >= 0) & (layers < count), layers + example * count, -1)
        stores = [_fold(store) for store in stores]
    layers = jnp.broadcast_to(layers if stacked else example, (size, rows[0].shape[1]))
    operands = [*stores, *map(_fold, rows), inv_freq, *map(_fold, (*index, layers))]
    results = primitive.bind(*operands, **params)
    like = [mapped[index].shape for index in (0, 1, _QUERY)]
    out_dims: list[int | None] = [0, 0, None if like[2] == (0,) else 0]
    return [r.reshape(shape) for r, shape in zip(results, like, strict=True)], out_dims


RULES: dict[str, Callable[..., Batched]] = {
    "paged_append": functools.partial(append, "paged_append"),
    "kv_cache_append": functools.partial(append, "kv_cache_append"),
    "apply_rope": rope,
}


def _one_table(
    size: int,
    batch_indices: jax.Array,
    positions: jax.Array,
    page_indices: jax.Array,
    page_indptr: jax.Array,
) -> list[jax.Array]:
    """N page tables of B requests as one of N * (B + 1), still [N, ...].

    Between the requests of two examples lies one that no token names.
    """
    example = jnp.arange(size, dtype=jnp.int32)[:, None]
    bounds, entries = page_indptr.shape[1], page_indices.shape[1]
    known = (batch_indices >= 0) & (batch_indices < bounds - 1)
    batch_indices = jnp.where(known, batch_indices + example * bounds, -1)
    page_indptr = jnp.clip(page_indptr, 0, entries) + example * entries
    return [batch_indices, positions, page_indices, page_indptr]


def _only_the_query(
    op: str,
    heads: int,
    primitive: Primitive,
    args: Sequence[jax.Array],
    dims: Dims,
    params: dict[str, Any],
) -> Batched:
    """N queries of the same tokens are N times the heads; anything else that is mapped raises."""
    mapped = [index for index, dim in enumerate(dims) if dim is not None]
    if mapped != [_QUERY]:
        raise NotImplementedError(
            f"{op} in vmap: a store is not mapped and other operands are, so that each example "
            "would need a copy of it. Map both stores, or append all rows in one call."
        )
    query, dim = args[_QUERY], dims[_QUERY]
    assert dim is not None
    query = jnp.moveaxis(query, dim, heads)
    count = query.shape[heads] * query.shape[heads + 1]
    merged = (*query.shape[:heads], count, *query.shape[heads + 2 :])
    operands = [*args[:_QUERY], query.reshape(merged), *args[_QUERY + 1 :]]
    *stores, rotated = primitive.bind(*operands, **params)
    return [*stores, rotated.reshape(query.shape)], [None, None, heads]


def _size(args: Sequence[jax.Array], dims: Dims) -> int:
    return next(a.shape[dim] for a, dim in zip(args, dims, strict=True) if dim is not None)


def _mapped(array: jax.Array, dim: int | None, size: int) -> jax.Array:
    """The array with its mapped axis, which it may lack, in front."""
    if dim is not None:
        return jnp.moveaxis(array, dim, 0)
    return jnp.broadcast_to(array, (size, *array.shape))


def _fold(array: jax.Array) -> jax.Array:
    """[N, X, ...] -> [N * X, ...]; what is missing stays so."""
    if array.shape == (0,):
        return array
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
