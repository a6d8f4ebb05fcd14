"""vmap of the paged primitives. A store that is not mapped is never copied.

N queries on one table are N times the heads; otherwise N calls of B requests are one call of N * B,
with the tables end to end, and N stores of P pages are one store of N * P.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from jax_baracuda._src.decode.batching import Dims, fold_into_group, is_missing, map_at, mapped_size
from jax_baracuda._src.paged import shapes, table

Arrays = Mapping[str, jax.Array]
Places = Mapping[str, int | None]
Results = tuple[Sequence[jax.Array], Sequence[int]]


def batch(
    kind: shapes.Kind, primitive: Primitive, args: Sequence[jax.Array], dims: Dims, **params: Any
) -> Results:
    """The batching rule of either primitive, for every mix of mapped operands."""
    size = mapped_size(args, dims)
    bind = functools.partial(primitive.bind, **params)
    query, k_pages = args[:2]
    if size == 0:
        like = map_at(0, query, dims[0], 0)
        return [jnp.zeros_like(like), jnp.zeros(like.shape[:3], jnp.float32)], [0, 0]
    if all(dim is None for dim in dims[1:-2]):
        kv_heads = k_pages.shape[2 if params["nhd"] else 1]
        return fold_into_group(bind, size, kv_heads, args, dims)
    if (dims[1] is None) != (dims[2] is None):  # one table cannot serve both
        return _one_by_one(bind, args, dims)
    names = shapes.OPERANDS[kind]
    arrays = dict(zip(names, args, strict=True))
    return _fold_into_batch(bind, size, arrays, dict(zip(names, dims, strict=True)))


def _one_by_one(bind: Callable[..., Any], args: Sequence[jax.Array], dims: Dims) -> Results:
    """A loop over the examples."""
    mapped = {
        index: jnp.moveaxis(args[index], dim, 0)
        for index, dim in enumerate(dims)
        if dim is not None
    }

    def one(own: Mapping[int, jax.Array]) -> Any:
        return bind(*(own.get(index, array) for index, array in enumerate(args)))

    return jax.lax.map(one, mapped), [0, 0]


def _fold_into_batch(bind: Callable[..., Any], size: int, arrays: Arrays, dims: Places) -> Results:
    """N batches of B requests are one."""
    mapped = {
        name: map_at(0, array, dims[name], size)
        for name, array in arrays.items()
        if name not in shapes.STORES
    }
    rows, requests = mapped["query"].shape[1], mapped["last_page_len"].shape[1]
    # Where requests bring rows of their own number, one without pages lies between two examples:
    # its rows are those of no request, and it is none of the last example's.
    between = int("qo_indptr" in arrays)

    def by_request(array: jax.Array) -> jax.Array:
        """[N, B, ...] -> [N * (B + between) - between, ...]."""
        padding = [(0, 0), (0, between), *[(0, 0)] * (array.ndim - 2)]
        flat = _flatten(jnp.pad(array, padding))
        return flat[: flat.shape[0] - between]

    def per_head(name: str) -> jax.Array:
        if is_missing(arrays[name]) or (dims[name] is None and arrays[name].shape[0] == 1):
            return arrays[name]  # a row [1, Hq] holds for every request
        given = mapped[name]
        return by_request(jnp.broadcast_to(given, (size, requests, given.shape[2])))

    stores, steps = _fold_stores(size, arrays, dims)
    operands = {"query": _flatten(mapped["query"]), **stores}
    if between:
        offsets = rows * jnp.arange(size, dtype=jnp.int32)[:, None]
        operands["qo_indptr"] = _flatten(jnp.clip(mapped["qo_indptr"], 0, rows) + offsets)
    operands |= _join_tables(mapped, by_request, steps)
    operands |= {name: per_head(name) for name in shapes.PER_HEAD}
    results = bind(*(operands[name] for name in arrays))
    return [array.reshape(size, rows, *array.shape[1:]) for array in results], [0, 0]


def _fold_stores(
    size: int, arrays: Arrays, dims: Places
) -> tuple[dict[str, jax.Array], tuple[int, int, int] | None]:
    """The stores, and for those of every example: P, and the steps from page to page and example.

    Next to the pages on either side, the mapped axis folds without moving any data.
    """
    stores = {name: arrays[name] for name in shapes.STORES}
    places = [dims[name] for name in shapes.STORES]
    if places == [None, None]:
        return stores, None
    at = 1 if places == [1, 1] else 0
    stores = {name: map_at(at, store, dims[name], size) for name, store in stores.items()}
    pages = stores["k_pages"].shape[1 - at]
    steps = (pages, size, 1) if at else (pages, 1, pages)
    return {name: _flatten(store) for name, store in stores.items()}, steps


def _join_tables(
    mapped: Arrays,
    by_request: Callable[[jax.Array], jax.Array],
    steps: tuple[int, int, int] | None,
) -> dict[str, jax.Array]:
    """One table for tables [N, ...], without the entries that no request names."""
    size, entries = mapped["page_indices"].shape
    read = functools.partial(table.read, page_size=1)
    requests = jax.vmap(read)(*(mapped[name] for name in shapes.TABLE))
    example = jnp.arange(size, dtype=jnp.int32)[:, None]
    counts = by_request(requests.pages)
    owner, nth = table.deal(counts, size * entries)
    owner = jnp.minimum(owner, max(counts.shape[0] - 1, 0))
    ids = _flatten(mapped["page_indices"])
    if size * entries and counts.shape[0]:
        first = by_request(requests.first + example * entries)
        ids = ids[jnp.clip(first[owner] + nth, 0, size * entries - 1)]
        if steps is not None:
            pages, page_step, example_step = steps
            whose = by_request(jnp.broadcast_to(example, requests.first.shape))[owner]
            ids = jnp.clip(ids, 0, pages - 1) * page_step + whose * example_step
    ends = jnp.cumsum(counts, dtype=jnp.int32)
    return {
        "page_indices": ids,
        "page_indptr": jnp.concatenate([jnp.zeros((1,), jnp.int32), ends]),
        "last_page_len": by_request(mapped["last_page_len"]),
    }


def _flatten(array: jax.Array) -> jax.Array:
    """[N, X, ...] -> [N * X, ...]."""
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
