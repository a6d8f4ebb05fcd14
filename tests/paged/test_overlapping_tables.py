"""Bounds of pages that go down and up again, so that ranges overlap.

A request whose bounds decrease has no pages; every other one has those between its own bounds,
whatever the others have. Only where the ranges together name more pages than the table has entries
do the reference and the kernels part: the reference keeps memory in proportion to the entries, so
it cuts the requests short that are behind that many pages.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jax_baracuda.testing.paged_odd import KINDS, odd_call, odd_operands

N = 8
# Those of one table name no more pages than there are entries, those of the other do.
WITHIN, BEYOND = (0, 3, 1, 4, 2), (2, 8, 1, 7, 9)


def table_with(kind: str, bounds: tuple[int, ...]) -> dict[str, np.ndarray]:
    given = odd_operands(kind)
    given["page_indices"] %= 10  # the store's
    given["last_page_len"] = np.array([3, 4, 1, 2], np.int32)
    return given | {"page_indptr": np.array(bounds, np.int32)}


def one_by_one(kind: str, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The reference's result of each request, called alone on the whole table."""
    outs, lses = [], []
    for b in range(len(given["last_page_len"])):
        own = dict(given, page_indptr=given["page_indptr"][b : b + 2])
        own["last_page_len"] = given["last_page_len"][b : b + 1]
        own["alibi_slopes"] = given["alibi_slopes"][b : b + 1]
        rows = slice(b, b + 1)
        if kind == "paged_prefill":
            rows = slice(*given["qo_indptr"][b : b + 2])
            own["qo_indptr"] = np.array([0, rows.stop - rows.start], np.int32)
        own["query"] = given["query"][rows]
        out, lse = odd_call(kind, implementation="reference")(**own)
        outs.append(np.asarray(out))
        lses.append(np.asarray(lse))
    return [np.concatenate(outs), np.concatenate(lses)]


def check(kind: str, bounds: tuple[int, ...], implementation: str) -> None:
    given = table_with(kind, bounds)
    if kind == "paged_prefill":  # every row belongs to a request
        given["qo_indptr"] = np.array([0, 2, 4, 7, 9], np.int32)
    call = odd_call(kind, implementation=implementation)
    got = jax.jit(lambda operands: call(**operands))(given)
    for ours, theirs in zip(got, one_by_one(kind, given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_requests_have_what_lies_between_their_own_bounds(kind):
    assert np.maximum(np.diff(np.clip(WITHIN, 0, N)), 0).sum() <= N
    check(kind, WITHIN, "reference")


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_stays_in_the_store_beyond_that(kind):
    out, lse = odd_call(kind, implementation="reference")(**table_with(kind, BEYOND))
    assert np.isfinite(out).all()
    assert not np.isnan(lse).any()


@pytest.mark.gpu
@pytest.mark.parametrize("bounds", [WITHIN, BEYOND], ids=["within", "beyond"])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_read_what_lies_between_the_bounds(kind, bounds):
    check(kind, bounds, "cuda")
