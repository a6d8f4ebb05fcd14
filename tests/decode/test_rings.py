"""Caches of the sizes that are read through rings in shared memory, in the stream and in wide
clusters."""

from __future__ import annotations

import numpy as np
import pytest

from jax_baracuda.testing import DecodeCase
from jax_baracuda.testing.decode import check_call

pytestmark = pytest.mark.gpu

EVERYTHING = {
    "sinks": True,
    "alibi_slopes": "head",
    "logits_soft_cap": 20.0,
    "local_window_size": (5000, 0),
    "sink_tokens": 3,
}
# 24 to 96 MB of keys and values, and up to 192 MB: batch, kv_heads, capacity, head_dim.
SIZES = (
    (1, 8, 8191, 128),
    (3, 8, 3001, 128),
    (40, 2, 1000, 128),
    (1, 8, 30001, 128),
    (2, 8, 8000, 64),
    (1, 8, 8001, 256),
    (1, 8, 1024, 128),  # wide clusters
    (1, 8, 2047, 128),
    (1, 7, 1000, 64),
)


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("batch", "kv_heads", "capacity", "head_dim"), SIZES)
def test_full_caches(batch, kv_heads, capacity, head_dim, dtype, options):
    check_call(DecodeCase("rings", batch, kv_heads, 4, capacity, head_dim, dtype=dtype, **options))


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize(("batch", "kv_heads", "capacity", "head_dim"), SIZES)
def test_lengths(batch, kv_heads, capacity, head_dim, group):
    """Of every kind: none, a part of a tile, all; rows past a request's length hold NaN."""
    rng = np.random.default_rng(batch * capacity)
    lengths = [int(n) for n in rng.integers(0, capacity, batch)]
    lengths[0] = 0 if batch > 3 else capacity - 1
    lengths[-1] = 17 if batch > 1 else lengths[-1]
    sizes = {"lengths": tuple(lengths), "sinks": True}
    check_call(DecodeCase("rings", batch, kv_heads, group, capacity, head_dim, **sizes))


@pytest.mark.parametrize("length", [0, 1, 15, 100])
def test_short_requests_in_large_caches(length):
    check_call(DecodeCase("rings", 1, 8, 4, 8192, 128, lengths=(length,)))
    check_call(DecodeCase("rings", 1, 8, 4, 1024, 128, lengths=(length,)))
