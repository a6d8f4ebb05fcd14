"""The paged cases: their pages hold what they should, and wrong results are found."""

import dataclasses
import itertools

import numpy as np
import pytest

from jax_baracuda.testing.cases import DecodeCase
from jax_baracuda.testing.paged import check_paged, make_paged_inputs, paged_arrays, run_paged
from jax_baracuda.testing.paged_cases import (
    PAGED_DECODE_CASES,
    PAGED_PREFILL_CASES,
    PagedDecodeCase,
    Pages,
    cut,
)
from jax_baracuda.testing.paged_small_calls import small_cases


def named(cases, name):
    (case,) = (case for case in cases if case.name == name)
    return case


def test_the_tables_cover_what_the_kernels_take():
    cells = {
        (case.call.dtype, case.call.head_dim, case.pages.page_size) for case in PAGED_DECODE_CASES
    }
    wanted = itertools.product(
        ("bfloat16", "float16", "float32"), (1, 40, 64, 80, 128, 256), (1, 3, 16, 64, 128)
    )
    assert set(wanted) <= cells
    for cases in (PAGED_DECODE_CASES, PAGED_PREFILL_CASES):
        names = [case.name for case in cases]
        assert len(set(names)) == len(names)
        assert {1, 4, 7, 8, 16, 20, 64} <= {case.call.group for case in cases}
        pages = [case.pages for case in cases]
        for field in dataclasses.fields(Pages):
            assert len({getattr(page, field.name) for page in pages}) > 1, field.name
    small = [case.name for case in small_cases()]
    assert len(set(small)) == len(small)


@pytest.mark.parametrize("kv_layout", ["HND", "NHD"])
@pytest.mark.parametrize("opened", [False, True])
def test_rows_are_cut_into_pages(kv_layout, opened):
    rng = np.random.default_rng(0)
    keys = [rng.normal(size=(n, 2, 4)).astype(np.float32) for n in (0, 7, 6, 1)]
    pages = Pages(3, kv_layout, spare_pages=2, first_entry=1, unused_entries=3, opened=opened)
    query = np.zeros((4, 2, 4), np.float32)
    given = cut("rows", pages, keys, [-rows for rows in keys], query)
    counts = np.diff(given["page_indptr"])
    assert counts.tolist() == ([1, 3, 3, 1] if opened else [0, 3, 2, 1])
    assert given["last_page_len"].tolist()[1:] == [1, 0 if opened else 3, 1]
    assert len(given["page_indices"]) == counts.sum() + 4
    store = given["k_pages"] if kv_layout == "NHD" else given["k_pages"].swapaxes(1, 2)
    unused = np.ones(store.shape[:2], bool)
    for request, rows in enumerate(keys):
        own = given["page_indices"][slice(*given["page_indptr"][request : request + 2])]
        for n, row in enumerate(rows):
            np.testing.assert_array_equal(store[own[n // 3], n % 3], row)
            unused[own[n // 3], n % 3] = False
    assert not np.isfinite(store[unused]).any()
    assert unused.sum() == unused.size - 14
    outside = np.delete(given["page_indices"], np.arange(1, 1 + counts.sum()))
    assert ((outside < 0) | (outside >= len(store))).all()
    used = np.isfinite(given["k_pages"])
    np.testing.assert_array_equal(given["v_pages"][used], -given["k_pages"][used])


@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_wrong_results_are_found(kind):
    """Of another page, of a key too few, of rows in another order."""
    cases = {"decode": PAGED_DECODE_CASES, "prefill": PAGED_PREFILL_CASES}[kind]
    case = named(cases, "sinks-page-16")
    inputs = make_paged_inputs(case)
    right = run_paged(case, inputs, implementation="reference")
    assert all(report.ok for report in check_paged(case, inputs, *right))
    arrays = paged_arrays(case, inputs)
    ids = np.roll(arrays["page_indices"], 1)

    @dataclasses.dataclass(frozen=True)
    class Changed(type(case)):
        def arrays(self, inputs):
            return super().arrays(inputs) | changes

    for changes in (
        {"page_indices": ids},
        {"last_page_len": arrays["last_page_len"] - 1},
        {"query": arrays["query"][::-1]},
    ):
        changed = Changed(case.call, case.pages)
        wrong = run_paged(changed, inputs, implementation="reference")
        assert not all(report.ok for report in check_paged(case, inputs, *wrong)), list(changes)


def test_a_case_keeps_the_numbers_of_its_contiguous_call():
    call = DecodeCase("numbers", batch=2, capacity=5, lengths=(9, -1), sinks=True)
    case = PagedDecodeCase(call, Pages(2))
    inputs = make_paged_inputs(case)
    arrays = paged_arrays(case, inputs)
    assert set(arrays) == {
        *("query", "k_pages", "v_pages", "page_indices", "page_indptr", "last_page_len", "sinks")
    }
    assert arrays["page_indptr"].tolist() == [0, 3, 3]  # lengths are clamped to the cache
    np.testing.assert_array_equal(arrays["query"], inputs.query)
