"""Generation on paged stores: the prompts in one call, then the decode loop in one compiled call.

Every request has all the pages it may come to need before it begins, so nothing is left for the
host to do: the loop makes each step's page table from the lengths, on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jax_baracuda
from jax_baracuda.paged import PageAllocator

from .config import ServingConfig
from .decoding import Sampling, sample
from .hub import HubConfig
from .model import Llama
from .paged import PagedStore, empty_store

_ROWS = 64  # prompts are padded to a multiple of so many rows, to compile for few sizes


class Prompts(NamedTuple):
    """The rows of all prompts, one after another, and then padding."""

    tokens: Array  # int32 [T]
    batch_indices: Array  # int32 [T], -1 for padding
    positions: Array  # int32 [T]
    indptr: Array  # int32 [B + 1], where prompts begin


class Table(NamedTuple):
    """Which pages each request's tokens are in, as paged_decode takes it."""

    page_indices: Array  # int32 [N]
    page_indptr: Array  # int32 [B + 1]
    last_page_len: Array  # int32 [B]


class PagedState(NamedTuple):
    """Between two tokens."""

    store: PagedStore
    pages: Array  # int32 [B, M], those that a request has or will need
    lengths: Array  # int32 [B], tokens in the store
    token: Array  # int32 [B], drawn but not yet in the store
    done: Array  # bool [B]
    key: Array  # PRNG key
    tokens: Array  # int32 [B, steps], what was drawn; -1 where nothing was
    made: Array  # int32 [], how many columns of it are


def pack_prompts(prompts: Sequence[Sequence[int]]) -> Prompts:
    """Token ids of each request, at least one each."""
    lengths = [len(prompt) for prompt in prompts]
    padding = -sum(lengths) % _ROWS
    tokens = np.concatenate([*map(np.asarray, prompts), np.zeros(padding, np.int32)])
    owners = np.concatenate([np.repeat(np.arange(len(prompts)), lengths), np.full(padding, -1)])
    positions = np.concatenate([*map(np.arange, lengths), np.zeros(padding, np.int32)])
    indptr = np.cumsum([0, *lengths])
    return Prompts(*(jnp.asarray(rows, jnp.int32) for rows in (tokens, owners, positions, indptr)))


def empty_state(
    config: HubConfig, lengths: Sequence[int], steps: int, key: Array, page_size: int = 16
) -> PagedState:
    """Pages for prompts of these lengths and ``steps`` more tokens, on the device."""
    batch = len(lengths)
    counts = [-(-(length + steps) // page_size) for length in lengths]
    allocator = PageAllocator(sum(counts), page_size, max_requests=batch)
    pages = np.zeros((batch, max(counts)), np.int32)
    for row, length in zip(pages, lengths, strict=True):
        taken = allocator.pages(allocator.alloc(length + steps))
        row[: len(taken)] = taken
    sizes = ServingConfig(page_size=page_size, num_pages=sum(counts))
    return PagedState(
        store=empty_store(config, sizes),
        pages=jnp.asarray(pages),
        lengths=jnp.zeros(batch, jnp.int32),
        token=jnp.zeros(batch, jnp.int32),
        done=jnp.zeros(batch, bool),
        key=key,
        tokens=jnp.full((batch, steps), -1, jnp.int32),
        made=jnp.int32(0),
    )


def page_table(pages: Array, lengths: Array, page_size: int) -> Table:
    """The table of requests of these lengths; one of length 0 has no pages and costs nothing."""
    batch, most = pages.shape
    counts = -(-lengths // page_size)
    indptr = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    entries = jnp.arange(batch * most, dtype=jnp.int32)
    request = jnp.searchsorted(indptr, entries, side="right") - 1
    request = jnp.minimum(request, batch - 1)  # of entries that are no request's, too
    indices = pages[request, jnp.minimum(entries - indptr[request], most - 1)]
    return Table(indices, indptr, lengths - jnp.maximum(counts - 1, 0) * page_size)


def prefill(model: Llama, state: PagedState, prompts: Prompts) -> tuple[Array, PagedStore]:
    """Runs the prompts: each one's next-token logits [B, V], and the store with their keys."""
    lengths = jnp.diff(prompts.indptr)
    table = page_table(state.pages, lengths, state.store.keys.shape[2])

    def attend(query: Array, store: PagedStore, pages: Array) -> Array:
        context, _ = jax_baracuda.paged_prefill(
            query,
            prompts.indptr,
            *store,
            pages,
            table.page_indptr,
            table.last_page_len,
            max_seqlen_q=query.shape[0],
        )
        return context

    layer = partial(_attend, model.config, table, prompts.batch_indices, prompts.positions, attend)
    x, store = model.hidden(prompts.tokens, layer, state.store)
    return model.logits(x[prompts.indptr[1:] - 1]), store


def decode_step(model: Llama, state: PagedState) -> tuple[Array, PagedStore]:
    """Puts each request's token into the store: the next logits [B, V], and the store."""
    lengths = jnp.where(state.done, 0, state.lengths + 1)
    table = page_table(state.pages, lengths, state.store.keys.shape[2])

    def attend(query: Array, store: PagedStore, pages: Array) -> Array:
        context, _ = jax_baracuda.paged_decode(
            query, *store, pages, table.page_indptr, table.last_page_len
        )
        return context

    requests = jnp.where(state.done, -1, jnp.arange(state.done.shape[0]))
    layer = partial(_attend, model.config, table, requests, state.lengths, attend)
    x, store = model.hidden(state.token, layer, state.store)
    return model.logits(x), store


def _attend(
    config: HubConfig,
    table: Table,
    batch_indices: Array,
    positions: Array,
    attend: Callable[[Array, PagedStore, Array], Array],
    query: Array,
    key: Array,
    value: Array,
    store: PagedStore,
    layer: Array,
) -> tuple[Array, PagedStore]:
    """What a layer does about attention: it rotates, appends, and attends to its own pages."""
    pages = table.page_indices + layer * (store.keys.shape[0] // config.num_hidden_layers)
    *written, query = jax_baracuda.paged_append(
        *store,
        key,
        value,
        batch_indices,
        positions,
        pages,
        table.page_indptr,
        query=query,
        rope=config.rope,
    )
    store = PagedStore(*written)
    return attend(query, store, pages), store


@partial(jax.jit, static_argnames="sampling", donate_argnames="state")
def start(
    model: Llama, state: PagedState, prompts: Prompts, *, sampling: Sampling = Sampling()
) -> PagedState:
    """Runs the prompts and draws each request's first token."""
    logits, store = prefill(model, state, prompts)
    state = state._replace(store=store, lengths=jnp.diff(prompts.indptr))
    return _drawn(model.config, state, logits, sampling)


@partial(jax.jit, static_argnames="sampling", donate_argnames="state")
def advance(
    model: Llama, state: PagedState, until: Array, *, sampling: Sampling = Sampling()
) -> PagedState:
    """Decodes, in one loop, until ``until`` tokens are made or all requests have ended."""

    def goes_on(state: PagedState) -> Array:
        return (state.made < until) & ~state.done.all()

    def body(state: PagedState) -> PagedState:
        logits, store = decode_step(model, state)
        lengths = jnp.where(state.done, state.lengths, state.lengths + 1)
        return _drawn(model.config, state._replace(store=store, lengths=lengths), logits, sampling)

    return jax.lax.while_loop(goes_on, body, state)


def _drawn(config: HubConfig, state: PagedState, logits: Array, sampling: Sampling) -> PagedState:
    """The state after the next token of each request that goes on."""
    key, draw = jax.random.split(state.key)
    token = sample(logits, draw, sampling)
    tokens = state.tokens.at[:, state.made].set(jnp.where(state.done, -1, token))
    ends = jnp.isin(token, jnp.array(config.eos_token_ids, jnp.int32))
    return state._replace(
        token=token, done=state.done | ends, key=key, tokens=tokens, made=state.made + 1
    )
