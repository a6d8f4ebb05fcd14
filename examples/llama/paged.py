"""A step of continuous batching on paged stores: any requests, one compiled call.

The store is [layers * P, Hkv, page, D]: P pages a layer, so that page p of a request is page
``p + layer * P`` of the whole. The scan over the layers carries all of it and nothing is copied.

Rows that decode (one a request) and rows of prompts (chunks of any length) share the projections
and the append. Attention takes them apart: ``paged_decode`` cuts each long history into parts that
many SMs read at once, where a row in ``paged_prefill`` would have one SM read all of it, in a tile
that is empty but for that row; and chunks need those tiles. On a GPU the two calls are the faster
way, and an idle half costs one empty launch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

import jax_baracuda

from .config import ModelConfig, ServingConfig
from .model import Llama


class PagedStore(NamedTuple):
    """Keys and values of every layer, [layers * P, Hkv, page, D]."""

    keys: Array
    values: Array


class Batch(NamedTuple):
    """The T rows of a step, packed, and the table of the histories they belong to.

    The table has an entry for each of E decoding requests, then one for each of C requests whose
    prompts are worked on; unused ones are empty. Entries' rows come in the table's order. The host
    makes all of it in numpy.
    """

    tokens: Array  # int32 [T]; ~e: what the step before drew for entry e of its table
    batch_indices: Array  # int32 [T], entry of the table; -1 for padding
    positions: Array  # int32 [T], in the entry's history
    chunk_indptr: Array  # int32 [C + 1], where the chunks' rows begin
    page_indices: Array  # int32 [N]
    page_indptr: Array  # int32 [E + C + 1]
    last_page_len: Array  # int32 [E + C]
    temperatures: Array  # float32 [E + C]
    seeds: Array  # int32 [E + C]


def empty_store(model: ModelConfig, serving: ServingConfig) -> PagedStore:
    """A store of ``num_pages`` pages a layer, in the dtype of the arithmetic."""
    pages = model.num_hidden_layers * serving.num_pages
    shape = (pages, model.num_key_value_heads, serving.page_size, model.head_dim)
    return PagedStore(jnp.zeros(shape, model.dtype), jnp.zeros(shape, model.dtype))


@functools.cache
def jitted_step(structure: jax.tree_util.PyTreeDef) -> Callable[..., tuple[PagedStore, Array]]:
    """``compute_step``, compiled for models of this structure, with their leaves for the model.

    To flatten the model at each call would take longer than all else that a call does. The store
    is donated.
    """

    def serving_step(
        weights: Sequence[Array], store: PagedStore, drawn: Array, batch: Batch
    ) -> tuple[PagedStore, Array]:
        return compute_step(jax.tree.unflatten(structure, weights), store, drawn, batch)

    return jax.jit(serving_step, donate_argnames="store")


def compute_step(
    model: Llama, store: PagedStore, drawn: Array, batch: Batch
) -> tuple[PagedStore, Array]:
    """Puts the rows into the store, in place, and draws the token after each entry's last row.

    ``drawn`` and the second result are int32 [E + C], one token an entry; those of entries without
    rows, or with more of their prompt to come, mean nothing.
    """
    unknown = batch.tokens < 0
    tokens = jnp.where(unknown, drawn[jnp.where(unknown, ~batch.tokens, 0)], batch.tokens)
    x, store = model.hidden(tokens, functools.partial(_attend, model.config, batch), store)
    chunks = batch.chunk_indptr.shape[0] - 1
    entries = jnp.arange(batch.last_page_len.shape[0] - chunks)
    # Row e is the one of entry e, if it decodes at all.
    last = jnp.concatenate([entries, jnp.maximum(batch.chunk_indptr[1:] - 1, 0)])
    logits = model.logits(x[last])
    return store, draw(logits, batch.temperatures, batch.seeds, batch.positions[last])


def _attend(
    config: ModelConfig,
    batch: Batch,
    query: Array,
    key: Array,
    value: Array,
    store: PagedStore,
    layer: Array,
) -> tuple[Array, PagedStore]:
    """Attention of all rows: query [T, Hq, D], key and value [T, Hkv, D]."""
    pages = batch.page_indices + layer * (store.keys.shape[0] // config.num_hidden_layers)
    *written, query = jax_baracuda.paged_append(
        *store,
        key,
        value,
        batch.batch_indices,
        batch.positions,
        pages,
        batch.page_indptr,
        query=query,
        rope={"theta": config.rope_theta},
    )
    store = PagedStore(*written)
    rows, chunks = query.shape[0], batch.chunk_indptr.shape[0] - 1
    entries = batch.last_page_len.shape[0] - chunks
    decoded, _ = jax_baracuda.paged_decode(
        query[:entries],
        *store,
        pages,
        batch.page_indptr[: entries + 1],
        batch.last_page_len[:entries],
    )
    context, _ = jax_baracuda.paged_prefill(
        query,
        batch.chunk_indptr,
        *store,
        pages,
        batch.page_indptr[entries:],
        batch.last_page_len[entries:],
        max_seqlen_q=rows - entries,
    )
    # Each is zero in the rows of the other.
    return context + jnp.pad(decoded, ((0, rows - entries), (0, 0), (0, 0))), store


def draw(logits: Array, temperatures: Array, seeds: Array, positions: Array) -> Array:
    """One token a row: logits [R, V], the others [R] -> int32 [R]. Temperature 0 is greedy.

    The randomness comes from the seed and the position: it is the same whatever other rows there
    are, and when a row is computed again.
    """

    def random(row: Array, temperature: Array, seed: Array, position: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), position)
        return jax.random.categorical(key, row / temperature)

    warm = temperatures > 0
    sampled = jax.vmap(random)(logits, jnp.where(warm, temperatures, 1), seeds, positions)
    return jnp.where(warm, sampled, logits.argmax(axis=-1)).astype(jnp.int32)
