"""A small call of each paged op, whose page table has everything odd about it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

KINDS = ("paged_decode", "paged_prefill")
# Requests, query rows of paged_prefill, heads, head dimension, pages, rows of a page, entries.
B, T, HQ, HKV, D, P, PAGE, N = 4, 9, 4, 2, 8, 10, 4, 8

# Neither from entry 0 nor to entry N; requests without pages, some by bounds that decrease.
_PAGE_INDPTR = ((1, 4, 4, 7, 5), (0, 2, 3, 6, 6), (2, 2, 5, 6, 8))
# Rows before, between and behind those of requests; requests without any.
_QO_INDPTR = ((1, 3, 4, 4, 8), (0, 0, 5, 8, 9), (2, 7, 7, 8, 8))


def odd_call(kind: str, **options: Any) -> Callable[..., Any]:
    """The public function, of operands by name."""
    import jax_baracuda

    if kind == "paged_prefill":
        options = {"max_seqlen_q": T} | options
    return functools.partial(getattr(jax_baracuda, kind), **options)


def odd_operands(
    kind: str, seed: int = 0, *, optional: bool = True, nhd: bool = False
) -> dict[str, np.ndarray]:
    """The operands by name: float32 and int32. Seeds 0, 1 and 2 have tables of their own.

    Among the page ids are such as lie outside the store, and some that several requests name; among
    the lengths of the last pages are 0 and such as are no length of a page.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def integers(low: int, high: int, size: int) -> np.ndarray:
        return rng.integers(low, high, size).astype(np.int32)

    store = (P, PAGE, HKV, D) if nhd else (P, HKV, PAGE, D)
    given = {
        "query": normal(B if kind == "paged_decode" else T, HQ, D),
        "k_pages": normal(*store),
        "v_pages": normal(*store),
        "page_indices": integers(-1, P + 1, N),
        "page_indptr": np.array(_PAGE_INDPTR[seed % 3], np.int32),
        "last_page_len": integers(-1, PAGE + 2, B),
    }
    if kind == "paged_prefill":
        given["qo_indptr"] = np.array(_QO_INDPTR[seed % 3], np.int32)
    if optional:
        given |= {"sinks": normal(HQ), "alibi_slopes": np.abs(normal(B, HQ))}
    return given
