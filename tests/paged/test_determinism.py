"""Bits of the CUDA kernels: repeats, other requests in the batch, other places in the store."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jax_baracuda.testing.calls import count_differences
from jax_baracuda.testing.cases import DecodeCase
from jax_baracuda.testing.paged import make_paged_inputs, paged_arrays, paged_function, run_paged
from jax_baracuda.testing.paged_cases import (
    PAGED_DECODE_CASES,
    PAGED_PREFILL_CASES,
    PagedDecodeCase,
    Pages,
)
from jax_baracuda.testing.paged_hopper_cases import HOPPER_PREFILL_CASES

pytestmark = pytest.mark.gpu

BATCH = 12
LENGTHS = tuple(int(n) for n in np.linspace(0, 900, BATCH))


def bits(array):
    """The bit patterns, so that comparing is exact and -0 differs from 0."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def assert_same_bits(got, want):
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(bits(ours), bits(theirs))


def invariance_case(dtype, splits, page_size):
    call = DecodeCase(
        "invariance",
        batch=BATCH,
        capacity=900,
        head_dim=128,
        dtype=dtype,
        lengths=LENGTHS,
        num_splits=splits,
        sinks=True,
        alibi_slopes="head",
    )
    return PagedDecodeCase(call, Pages(page_size))


def run(case, arrays):
    call = paged_function(case, implementation="cuda")
    out, lse = jax.jit(lambda operands: call(**operands))(jax.device_put(arrays))
    return np.asarray(out), np.asarray(lse)


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize(("dtype", "splits"), [("bfloat16", 1), ("bfloat16", 6), ("float32", 6)])
def test_batch_invariance(dtype, splits, page_size):
    """With num_splits a request gives the same bits alone and beside other requests."""
    case = invariance_case(dtype, splits, page_size)
    arrays = paged_arrays(case, make_paged_inputs(case))
    out, lse = run(case, arrays)

    bounds = arrays["page_indptr"]
    for request in (0, 5, BATCH - 1):  # alone, and in a smaller table
        row = slice(request, request + 1)
        alone = arrays | {
            "query": arrays["query"][row],
            "page_indices": arrays["page_indices"][bounds[request] : bounds[request + 1]],
            "page_indptr": bounds[request : request + 2] - bounds[request],
            "last_page_len": arrays["last_page_len"][row],
        }
        assert_same_bits(run(case, alone), (out[row], lse[row]))

    # In another order, the last one without any page: all others stay what they are.
    order = np.random.default_rng(0).permutation(BATCH)
    counts = np.diff(bounds)[order]
    counts[-1] = 0
    ids = [arrays["page_indices"][bounds[i] : bounds[i + 1]] for i in order[:-1]]
    mixed = arrays | {
        "query": arrays["query"][order],
        "page_indices": np.concatenate([*ids, np.full(999, -1, np.int32)]),
        "page_indptr": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        "last_page_len": arrays["last_page_len"][order],
    }
    got = run(case, mixed)
    kept = order[:-1]
    assert_same_bits([array[:-1] for array in got], (out[kept], lse[kept]))


@pytest.mark.parametrize("splits", [None, 4])
def test_the_places_of_pages_change_no_bit(splits):
    case = invariance_case("bfloat16", splits, 16)
    arrays = paged_arrays(case, make_paged_inputs(case))
    want = run(case, arrays)
    places = np.random.default_rng(1).permutation(len(arrays["k_pages"])).astype(np.int32)
    moved = {name: np.empty_like(arrays[name]) for name in ("k_pages", "v_pages")}
    for name, store in moved.items():
        store[places] = arrays[name]
    ids = arrays["page_indices"]
    known = (ids >= 0) & (ids < len(places))
    ids = np.where(known, places[np.where(known, ids, 0)], ids)
    assert_same_bits(run(case, arrays | moved | {"page_indices": ids}), want)


REPEATED = [
    *(c for c in PAGED_DECODE_CASES if c.name in ("uneven-bfloat16-page-16", "ragged")),
    *(c for c in PAGED_DECODE_CASES if c.name in ("uneven-bfloat16-page-1", "uneven-splits")),
    *(c for c in PAGED_PREFILL_CASES if c.name in ("everything-page-64", "uneven-page-1")),
    *(c for c in HOPPER_PREFILL_CASES if c.name in ("128-page-16", "requests-100-page-16")),
]


@pytest.mark.parametrize("case", REPEATED, ids=lambda case: case.name)
def test_repeats_bitwise(case):
    """1000 calls, one result: no race and no atomics in the sums."""
    arrays = jax.device_put(paged_arrays(case, make_paged_inputs(case)))
    call = paged_function(case, implementation="cuda")
    step = jax.jit(lambda operands: call(**operands))
    assert count_differences(step, arrays, 1000) == 0


@pytest.mark.parametrize("name", ["everything-page-1", "everything-page-16", "window-page-16"])
def test_prefill_rows_do_not_depend_on_the_batch(name):
    """A request's rows give the same bits alone and beside other requests."""
    (case,) = (c for c in PAGED_PREFILL_CASES if c.name == name)
    case = dataclasses.replace(
        case,
        call=dataclasses.replace(
            case.call, alibi_slopes=case.call.alibi_slopes and "head", max_seqlens=(70, 400)
        ),
    )
    inputs = make_paged_inputs(case)
    out, lse = run_paged(case, inputs, implementation="cuda")
    arrays = paged_arrays(case, inputs)
    rows, bounds = arrays["qo_indptr"], arrays["page_indptr"]
    for request in (0, 2, 6):
        own = slice(rows[request], rows[request + 1])
        alone = arrays | {
            "query": arrays["query"][own],
            "qo_indptr": rows[request : request + 2] - rows[request],
            "page_indptr": bounds[request : request + 2],
            "last_page_len": arrays["last_page_len"][request : request + 1],
        }
        assert_same_bits(run(case, alone), (out[own], lse[own]))
