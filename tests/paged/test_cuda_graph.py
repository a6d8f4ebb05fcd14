"""Decode loops over pages in CUDA graphs: one captured step serves every length and page table."""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_baracuda
from jax_baracuda.testing import loops
from jax_baracuda.testing.paged_loops import PagedState, page_table, paged_loop_inputs, paged_step

STEPS, LAYERS = 40, 2


def loop_inputs() -> PagedState:
    """Three requests: one begins empty, and one with pages that are full."""
    return paged_loop_inputs(
        kv_heads=2,
        query_heads=8,
        head_dim=64,
        page_size=16,
        most_pages=12,
        layers=LAYERS,
        lengths=(0, 130, 32),
    )


def attend(kind, implementation, query, *stores_and_table):
    """One query row a request, by either op."""
    if kind == "paged_decode":
        call = jax_baracuda.paged_decode
        return call(query, *stores_and_table, implementation=implementation)[0]
    bounds = jnp.arange(query.shape[0] + 1)
    return jax_baracuda.paged_prefill(
        query, bounds, *stores_and_table, max_seqlen_q=1, implementation=implementation
    )[0]


def step_of(implementation):
    append = functools.partial(jax_baracuda.paged_append, implementation=implementation)
    return functools.partial(paged_step, append=append)


@pytest.mark.gpu
@pytest.mark.long
@pytest.mark.parametrize("kind", ["paged_decode", "paged_prefill"])
def test_loop_is_captured(kind, tmp_path):
    """Every kernel of ours sits in a command buffer; with WHILE enabled the loop itself does."""
    for got in loops.check_captured(__file__, tmp_path, kind, "cuda").values():
        assert got.shape == (STEPS, 3, 8, 64)
        assert len(np.unique(got[:, 0, 0], axis=0)) == STEPS  # every step is another one


@pytest.mark.parametrize("kind", ["paged_decode", "paged_prefill"])
def test_loops_grow_the_tables(kind, tmp_path):
    """The loops compute what attention over contiguous rows computes, on any machine."""
    process = loops.start_process(__file__, tmp_path, "", kind, "reference")
    results = loops.finish_process(process, tmp_path)
    query, lengths, places, layers = loop_inputs()
    capacity = places.shape[1] * layers[0][0].shape[2]

    def contiguous(store):
        rows = store[places].swapaxes(1, 2)
        return rows.reshape(len(lengths), -1, capacity, store.shape[-1])

    caches = tuple(tuple(map(contiguous, stores)) for stores in layers)
    reference = functools.partial(jax_baracuda.flash_decode, implementation="reference")
    step = jax.jit(functools.partial(loops.decode_step, attend=reference))
    state, queries = (query, lengths, caches), []
    for _ in range(STEPS):
        state = step(state)
        queries.append(np.asarray(state[0], np.float32))
    for name in loops.LOOPS:
        got = results[name].view(jnp.bfloat16).astype(np.float32)
        np.testing.assert_allclose(got, np.stack(queries), rtol=0.05, atol=0.05)


def test_a_table_names_the_pages_in_use():
    places = jnp.array([[7, 1, 4], [2, 8, 3], [5, 6, 0]])
    indices, bounds, last = page_table(places, jnp.array([0, 5, 8]), 4)
    assert bounds.tolist() == [0, 0, 2, 4]
    assert indices.tolist() == [2, 8, 5, 6, *[2**31 - 1] * 5]
    assert last.tolist()[1:] == [1, 4]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["paged_decode", "paged_prefill"])
def test_scan_over_stacked_layers_copies_no_store(kind):
    """Appends and reads of layer l name pages from l * P on: the carried stores stay in place."""
    layers, pages, page_size, heads, dim = 5, 24, 16, 4, 128
    shape = (pages, heads, page_size, dim)
    lengths = jnp.array([159, 76], jnp.int32)
    places = jnp.arange(20, dtype=jnp.int32)[::-1].reshape(2, 10)

    def model(stores, query):
        indices, bounds, last = page_table(places, lengths + 1, page_size)

        def layer(carry, index):
            query, stores = carry
            flat = [store.reshape(layers * pages, *shape[1:]) for store in stores]
            table = jnp.clip(indices, 0, pages - 1) + index * pages, bounds
            rows = query[:, :heads]
            flat = jax_baracuda.paged_append(
                *flat, rows, rows, jnp.arange(2), lengths, *table, implementation="cuda"
            )
            out = attend(kind, "cuda", query, *flat, *table, last)
            stores = tuple(store.reshape(layers, *shape) for store in flat)
            return ((query + out).astype(query.dtype), stores), None

        return jax.lax.scan(layer, (query, stores), jnp.arange(layers))[0]

    keys = jax.random.split(jax.random.key(0), 3)
    stores = tuple(jax.random.normal(key, (layers, *shape), jnp.bfloat16) for key in keys[:2])
    query = jax.random.normal(keys[2], (2, 16, dim), jnp.bfloat16)
    compiled = jax.jit(model, donate_argnums=0).lower(stores, query).compile()
    hlo = compiled.as_text()
    for size in (f"{layers},{pages}", f"{layers * pages}", f"{pages}"):
        assert loops.written_arrays(hlo, f"bf16[{size},{heads},{page_size},{dim}]") == []

    expected = query
    table = page_table(places, lengths + 1, page_size)
    for own in zip(*stores, strict=True):
        rows = expected[:, :heads]
        own = jax_baracuda.paged_append(*own, rows, rows, jnp.arange(2), lengths, *table[:2])
        out = attend(kind, "cuda", expected, *own, *table)
        expected = (expected + out).astype(query.dtype)
    got, _ = compiled(stores, query)
    np.testing.assert_array_equal(
        np.asarray(got).view(np.uint16), np.asarray(expected).view(np.uint16)
    )


if __name__ == "__main__":
    path, which, implementation = sys.argv[1:]
    loops.run_loops(
        functools.partial(attend, which, implementation),
        loop_inputs(),
        STEPS,
        path,
        step=step_of(implementation),
    )
