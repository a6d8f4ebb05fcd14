"""Page tables in plain jnp. Nothing in a table is trusted: what is out of range becomes harmless.

The pages of request b are ``page_indices[page_indptr[b] : page_indptr[b + 1]]``, all of them full
but the last one, which holds ``last_page_len[b]`` keys.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Requests(NamedTuple):
    """What a table says of its requests: int32 [B]."""

    first: jax.Array  # where the entries of a request begin
    pages: jax.Array  # how many entries it has
    lengths: jax.Array  # how many keys


def read(
    page_indices: jax.Array, page_indptr: jax.Array, last_page_len: jax.Array, page_size: int
) -> Requests:
    """The requests of a table. Bounds are clamped; those that decrease leave a request no pages."""
    entries = page_indices.shape[0]
    bounds = jnp.clip(page_indptr, 0, entries)
    first = bounds[:-1]
    pages = jnp.maximum(bounds[1:] - first, 0)
    # Ranges that overlap, which is no table's way, may name no more pages than there are entries.
    ends = jnp.minimum(jnp.cumsum(pages, dtype=jnp.int32), entries)
    pages = jnp.diff(ends, prepend=jnp.zeros((1,), jnp.int32))
    last = jnp.clip(last_page_len, 0, page_size)
    return Requests(first, pages, jnp.where(pages > 0, (pages - 1) * page_size + last, 0))


def deal(counts: jax.Array, places: int) -> tuple[jax.Array, jax.Array]:
    """Gives request 0 the first ``counts[0]`` places, request 1 the next ones, and so on.

    Args:
      counts: int32 [B].
      places: how many places there are.

    Returns:
      The owner of each place, B where it has none, and which of the owner's it is: int32 [places].
    """
    ends = jnp.cumsum(counts, dtype=jnp.int32)
    # The owner is the number of requests that end before a place or there.
    ending = jnp.zeros((places,), jnp.int32).at[ends].add(1, mode="drop")
    owner = jnp.cumsum(ending, dtype=jnp.int32)
    starts = jnp.append(ends - counts, 0)
    return owner, jnp.arange(places, dtype=jnp.int32) - starts[owner]


def pages_at(page_indices: jax.Array, entries: jax.Array, pages: int) -> jax.Array:
    """The page ids of some entries of a table, inside of the store."""
    entries = jnp.clip(entries, 0, page_indices.shape[0] - 1)
    return jnp.clip(page_indices[entries], 0, pages - 1)
