"""vmap of the primitives: the mapped axis folds into pages, requests or tokens.

N stores of P pages are one store of N * P, and N caches of L layers one of N * L: nothing is moved
where the mapped axis comes first. New rows for a store that is not mapped would need a copy of it
for every example, which is refused. A query that is mapped alone becomes more heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

Dims = Sequence[int | None]
Batched = tuple[list[Any], list[int | None]]

_QUERY = 4  # among the operands of an append


def rope(primitive: Primitive, args: Sequence[jax.Array], dims: Dims, **params: Any) -> Batched:
    """The mapped axis is one more leading axis."""
    size = _size(args, dims)
    x, positions = (_mapped(array, dim, size) for array, dim in zip(args[:2], dims, strict=False))
    if dims[2] is not None:
        raise NotImplementedError("apply_rope: the frequencies are mapped, which no caller does.")
    return primitive.bind(x, positions, args[2], **params), [0]


def paged_append(
    primitive: Primitive, args: Sequence[jax.Array], dims: Dims, **params: Any
) -> Batched:
    """N stores of P pages are one of N * P, with one page table of N * (B + 1) requests."""
    if dims[0] is None or dims[1] is None:
        return _only_the_query("paged_append", 1, primitive, args, dims, params)
    size = _size(args, dims)
    arrays = _all_mapped(args, dims, size)
    *stores_and_rows, inv_freq, requests, positions, table, indptr = arrays
    example = jnp.arange(size, dtype=jnp.int32)[:, None]
    pages, entries, bounds = arrays[0].shape[1], table.shape[1], indptr.shape[1]
    # Between the requests of two examples lies one that no token names.
    known = (requests >= 0) & (requests < bounds - 1)
    requests = jnp.where(known, requests + example * bounds, -1)
    table = jnp.where((table >= 0) & (table < pages), table + example * pages, -1)
    indptr = jnp.clip(indptr, 0, entries) + example * entries
    folded = [_fold(array) for array in stores_and_rows]
    index = [_fold(array) for array in (requests, positions, table, indptr)]
    return _unfold(primitive.bind(*folded, inv_freq, *index, **params), arrays)


def cache_append(
    primitive: Primitive, args: Sequence[jax.Array], dims: Dims, **params: Any
) -> Batched:
    """N caches of L layers are one of N * L, in which a request has a layer of its own."""
    if dims[0] is None or dims[1] is None:
        heads = 2 if params["nhd"] else 1
        return _only_the_query("kv_cache_append", heads, primitive, args, dims, params)
    size = _size(args, dims)
    arrays = _all_mapped(args, dims, size)
    *caches_and_rows, inv_freq, lengths, layers = arrays
    layer_count = arrays[0].shape[1]
    example = jnp.arange(size, dtype=jnp.int32)[:, None]
    layers = jnp.where((layers >= 0) & (layers < layer_count), layers + example * layer_count, -1)
    layers = jnp.broadcast_to(layers, lengths.shape)
    folded = [_fold(array) for array in caches_and_rows]
    results = primitive.bind(*folded, inv_freq, _fold(lengths), _fold(layers), **params)
    return _unfold(results, arrays)


RULES: dict[str, Callable[..., Batched]] = {
    "paged_append": paged_append,
    "kv_cache_append": cache_append,
    "apply_rope": rope,
}


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


def _all_mapped(args: Sequence[jax.Array], dims: Dims, size: int) -> list[jax.Array]:
    """The operands of an append; a missing query stays missing, and all share the frequencies."""
    return [
        array
        if index == _QUERY + 1 or (index == _QUERY and array.shape == (0,))
        else _mapped(array, dim, size)
        for index, (array, dim) in enumerate(zip(args, dims, strict=True))
    ]


def _fold(array: jax.Array) -> jax.Array:
    """[N, X, ...] -> [N * X, ...]; what is missing stays so."""
    if array.shape == (0,):
        return array
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def _unfold(results: Sequence[jax.Array], arrays: Sequence[jax.Array]) -> Batched:
    """The results in the mapped shapes of the operands that they are like."""
    like = [arrays[index].shape for index in (0, 1, _QUERY)]
    dims: list[int | None] = [0, 0, None if like[2] == (0,) else 0]
    return [r.reshape(shape) for r, shape in zip(results, like, strict=True)], dims
