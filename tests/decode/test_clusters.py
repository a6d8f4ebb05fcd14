"""Rows that a cluster of CTAs merges: pairs by a fixed split of two or by the size of the problem,
and one request's short rows, which wide clusters take."""

from __future__ import annotations

import functools

import jax
import pytest

from jax_baracuda import flash_decode
from jax_baracuda.testing import DecodeCase, make_inputs
from jax_baracuda.testing.calls import count_differences
from jax_baracuda.testing.decode import check_call
from jax_baracuda.testing.paged import check_paged, make_paged_inputs, run_paged
from jax_baracuda.testing.paged_cases import PagedDecodeCase, Pages

pytestmark = pytest.mark.gpu

# Every layout of a CTA: query heads in one or several warps, keys in one or several.
LAYOUTS = (
    ("bfloat16", 64, 4),
    ("bfloat16", 128, 1),
    ("bfloat16", 128, 8),
    ("bfloat16", 128, 9),
    ("bfloat16", 128, 64),
    ("bfloat16", 128, 128),  # too much for the shared memory of a pair
    ("bfloat16", 80, 3),
    ("bfloat16", 33, 5),
    ("float16", 256, 8),
    ("float16", 200, 7),
    ("float32", 128, 4),
    ("float32", 256, 5),
)
EVERYTHING = {
    "sinks": True,
    "alibi_slopes": "head",
    "logits_soft_cap": 20.0,
    "local_window_size": (150, 0),
    "sink_tokens": 3,
}


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize(("dtype", "head_dim", "group"), LAYOUTS)
def test_pairs_by_a_fixed_split(dtype, head_dim, group, options):
    """Lengths that leave one CTA of a pair, or both, without a key."""
    lengths = (0, 1, 16, 65, 333, 700)
    sizes = {"batch": len(lengths), "capacity": 700, "head_dim": head_dim, "group": group}
    check_call(DecodeCase("pairs", dtype=dtype, lengths=lengths, num_splits=2, **sizes, **options))


@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("capacity", [65, 700, 2048])
def test_pairs_that_fill_the_gpu(head_dim, capacity, layout):
    """56 rows: an H200 has 132 SMs."""
    sizes = {"batch": 7, "kv_heads": 8, "capacity": capacity, "head_dim": head_dim}
    check_call(DecodeCase("pairs", kv_layout=layout, **sizes))


def test_more_pairs_than_run_at_once():
    lengths = tuple(range(0, 640, 10))
    check_call(DecodeCase("pairs", 64, 8, 4, 640, 128, lengths=lengths, num_splits=2))


@pytest.mark.parametrize("length", [None, 1, 100, 999])
@pytest.mark.parametrize("capacity", [1024, 3000, 8192])
@pytest.mark.parametrize("group", [1, 4, 16])
def test_one_request(group, capacity, length):
    lengths = None if length is None else (length,)
    check_call(DecodeCase("one", 1, 8, group, capacity, 128, lengths=lengths, sinks=True))


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("length", [0, 100, 3000])
def test_one_request_in_pages(length, page_size):
    call = DecodeCase("one", 1, 8, 4, 3000, 128, lengths=(length,))
    case = PagedDecodeCase(call, Pages(page_size))
    inputs = make_paged_inputs(case)
    results = run_paged(case, inputs, implementation="cuda")
    for report in check_paged(case, inputs, *results):
        report.check()


def test_repeats_have_the_same_bits():
    """Two problems by turns, 300 times: CTAs of one begin while those of the other end."""
    cases = (
        DecodeCase("pairs", 7, 8, 4, 700, 128),
        DecodeCase("split", 6, 2, 4, 700, 128, lengths=(0, 1, 16, 65, 333, 700), num_splits=2),
    )

    call = functools.partial(flash_decode, return_lse=True, implementation="cuda")

    def step(operands):
        return [
            call(**given, **case.options()) for case, given in zip(cases, operands, strict=True)
        ]

    operands = jax.device_put([make_inputs(case).arrays() for case in cases])
    assert count_differences(jax.jit(step), operands, 300) == 0
