"""Stores of the sizes that paged_decode reads through rings in shared memory, in the stream and in
wide clusters, with tables that are small enough for shared memory and with larger ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_baracuda.testing.cases import DecodeCase
from jax_baracuda.testing.paged import check_paged, make_paged_inputs, run_paged
from jax_baracuda.testing.paged_cases import PagedDecodeCase, Pages

pytestmark = pytest.mark.gpu

EVERYTHING = {"sinks": True, "alibi_slopes": "head", "logits_soft_cap": 20.0}
# Lengths of the requests, key/value heads, head_dim: 24 to 96 MB of keys and values, and up to 192.
SIZES = (
    ((8191,), 8, 128),
    ((30001,), 8, 128),
    ((3001, 0, 17, 6000), 8, 128),
    ((1000,) * 20 + (2, 0, 5, 1001) * 5, 4, 128),
    ((8000, 7999), 8, 64),
    ((8001,), 8, 256),
    ((1023,), 8, 128),  # wide clusters
    ((2048,), 8, 128),
    ((1000,), 7, 64),
)


def check(case: PagedDecodeCase) -> None:
    inputs = make_paged_inputs(case)
    for report in check_paged(case, inputs, *run_paged(case, inputs, implementation="cuda")):
        report.check()


def decode_case(lengths, kv_heads, head_dim, group=4, **options) -> DecodeCase:
    """A call on requests of these lengths."""
    sizes = len(lengths), kv_heads, group, max(lengths), head_dim
    return DecodeCase("rings", *sizes, lengths=lengths, **options)


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("page_size", [4, 16, 64])
@pytest.mark.parametrize(("lengths", "kv_heads", "head_dim"), SIZES)
def test_pages(lengths, kv_heads, head_dim, page_size, options):
    call = decode_case(lengths, kv_heads, head_dim, **options)
    check(PagedDecodeCase(call, Pages(page_size)))


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("lengths", "kv_heads", "head_dim"), SIZES)
def test_tables_with_more_than_the_requests(lengths, kv_heads, head_dim, dtype, group):
    call = decode_case(lengths, kv_heads, head_dim, group, dtype=dtype)
    pages = Pages(16, first_entry=5, unused_entries=9, opened=True)
    check(PagedDecodeCase(call, pages))


@pytest.mark.parametrize("page_size", [1, 6, 16])
@pytest.mark.parametrize("options", [{"local_window_size": 500, "sink_tokens": 3}, {}])
@pytest.mark.parametrize("kv_layout", ["HND", "NHD"])
def test_what_rings_do_not_read(page_size, options, kv_layout):
    """Other page sizes, windows, NHD: of the same size, through registers."""
    call = decode_case((1023,), 8, 128, kv_layout=kv_layout, **options)
    check(PagedDecodeCase(call, Pages(page_size, kv_layout=kv_layout)))


@pytest.mark.parametrize("length", [0, 1, 15, 100])
@pytest.mark.parametrize("entries", [64, 512, 2048, 4096])
def test_short_requests_and_large_tables(length, entries):
    used = -(-length // 16)
    call = (
        decode_case((length,), 8, 128)
        if length
        else DecodeCase("none", 1, 8, 4, 16, 128, lengths=(0,))
    )
    check(PagedDecodeCase(call, Pages(16, unused_entries=entries - used)))


@pytest.mark.parametrize("tokens", [1024, 2048, 8192, 16384])
def test_the_same_bits_every_time(tokens):
    import jax_baracuda

    keys = jax.random.split(jax.random.key(tokens), 3)
    store = (tokens // 16, 8, 16, 128)
    query = jax.random.normal(keys[0], (1, 32, 128), jnp.bfloat16)
    stores = [jax.random.normal(key, store, jnp.bfloat16) for key in keys[1:]]
    table = (
        np.random.default_rng(0).permutation(tokens // 16).astype(np.int32),
        np.array([0, tokens // 16], np.int32),
        np.array([16], np.int32),
    )
    step = jax.jit(lambda *operands: jax_baracuda.paged_decode(*operands, implementation="cuda"))
    first = jax.device_get(step(query, *stores, *table))
    for _ in range(10):
        jax.tree.map(
            np.testing.assert_array_equal, first, jax.device_get(step(query, *stores, *table))
        )
