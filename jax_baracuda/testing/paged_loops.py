"""A decode step over pages, for the loops of ``loops``: page tables grow on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Stores = tuple[jax.Array, jax.Array]
# A query [B, Hq, D], lengths [B], the page ids [B, M] that each request may use, a store a layer.
PagedState = tuple[jax.Array, jax.Array, jax.Array, tuple[Stores, ...]]


def paged_loop_inputs(
    *,
    kv_heads: int,
    query_heads: int,
    head_dim: int,
    page_size: int,
    most_pages: int,
    layers: int,
    lengths: Sequence[int],
    dtype: Any = jnp.bfloat16,
) -> PagedState:
    """Requests whose pages lie anywhere in the stores; what they have not written yet is NaN."""
    keys = jax.random.split(jax.random.key(0), 2 * layers + 2)
    batch, filled = len(lengths), jnp.asarray(lengths, jnp.int32)
    pages = batch * most_pages
    places = jax.random.permutation(keys[-1], pages).astype(jnp.int32).reshape(batch, most_pages)
    position = jnp.arange(most_pages * page_size).reshape(most_pages, 1, page_size, 1)

    def store(key: jax.Array) -> jax.Array:
        shape = (batch, most_pages, kv_heads, page_size, head_dim)
        rows = jax.random.normal(key, shape, dtype)
        rows = jnp.where(position < filled[:, None, None, None, None], rows, jnp.nan)
        return jnp.zeros((pages, *shape[2:]), dtype).at[places].set(rows)

    stores = [store(key) for key in keys[: 2 * layers]]
    query = jax.random.normal(keys[-2], (batch, query_heads, head_dim), dtype)
    return query, filled, places, tuple(zip(stores[::2], stores[1::2], strict=True))


def page_table(
    places: jax.Array, lengths: jax.Array, page_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The table of requests of these lengths; its unused entries name no page at all."""
    batch, most_pages = places.shape
    counts = -(-lengths // page_size)
    bounds = jnp.concatenate([jnp.zeros((1,), jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    nth = jnp.arange(most_pages, dtype=jnp.int32)
    used = nth < counts[:, None]
    at = jnp.where(used, bounds[:-1, None] + nth, batch * most_pages)
    indices = jnp.full((batch * most_pages,), 2**31 - 1, jnp.int32)
    indices = indices.at[at.reshape(-1)].set(places.reshape(-1), mode="drop")
    return indices, bounds, lengths - (counts - 1) * page_size


def paged_step(
    state: PagedState, attend: Callable[..., jax.Array], append: Callable[..., Stores]
) -> PagedState:
    """One token: every layer appends a row to its pages and attends to all rows so far.

    Args:
      state: where the loop stands.
      attend: of a query, the two stores and the three arrays of a page table.
      append: ``paged_append``.
    """
    query, lengths, places, layers = state
    table = page_table(places, lengths + 1, layers[0][0].shape[2])
    requests = jnp.arange(query.shape[0], dtype=jnp.int32)
    kept = []
    for k_pages, v_pages in layers:
        rows = query[:, : k_pages.shape[1]]  # stands in for the projections of a model
        stores = append(k_pages, v_pages, rows, rows, requests, lengths, *table[:2])
        # As in ``decode_step``: it neither grows nor settles.
        wave = jnp.cos(lengths[:, None, None] * 0.7 + jnp.arange(query.shape[-1]))
        query = (attend(query, *stores, *table) / 2 + wave).astype(query.dtype)
        kept.append(stores)
    return query, lengths + 1, places, tuple(kept)
