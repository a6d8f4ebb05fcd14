"""The tables of paged cases: calls over contiguous keys, and how these are cut into pages."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_baracuda.testing.attention_cases import AttentionCase, AttentionInputs
from jax_baracuda.testing.cases import DecodeCase, DecodeInputs


@dataclasses.dataclass(frozen=True)
class Pages:
    """How keys and values are cut into pages, and what else a store and a page table hold.

    ``spare_pages`` are pages of the store that no request has, full of NaN. ``first_entry`` entries
    of the table lie before those of request 0 and ``unused_entries`` behind the last ones: they are
    ids outside of the store. With ``opened`` each request whose last page is full, or which has
    none, has one more page, with no key in it.
    """

    page_size: int = 16
    kv_layout: str = "HND"
    spare_pages: int = 3
    first_entry: int = 0
    unused_entries: int = 2
    opened: bool = False


@dataclasses.dataclass(frozen=True)
class PagedDecodeCase:
    """One call of ``paged_decode``: the ``flash_decode`` call with the same result, and pages."""

    call: DecodeCase
    pages: Pages = Pages()

    @property
    def name(self) -> str:
        """Of the case."""
        return self.call.name

    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``paged_decode`` that are not arrays."""
        return self.call.options() | {"kv_layout": self.pages.kv_layout}

    def arrays(self, inputs: DecodeInputs) -> dict[str, np.ndarray]:
        """The operands by the names of ``paged_decode``'s arguments, with the keys of ``inputs``.

        Rows of the store that belong to no request hold NaN and infinity.
        """
        nhd = self.call.kv_layout == "NHD"
        lengths = np.full(self.call.batch, self.call.capacity)
        if inputs.kv_lengths is not None:
            lengths = np.clip(inputs.kv_lengths, 0, self.call.capacity)

        def rows(cache: np.ndarray) -> list[np.ndarray]:
            by_row = cache if nhd else cache.swapaxes(1, 2)
            return [by_row[request, :length] for request, length in enumerate(lengths)]

        paged = cut(self.name, self.pages, rows(inputs.key), rows(inputs.value), inputs.query)
        return paged | _per_head(inputs)


@dataclasses.dataclass(frozen=True)
class PagedPrefillCase:
    """One call of ``paged_prefill``: the packed call with the same result, and pages."""

    call: AttentionCase
    pages: Pages = Pages()

    @property
    def name(self) -> str:
        """Of the case."""
        return self.call.name

    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``paged_prefill`` that are not arrays."""
        theirs = ("max_seqlen_k", "dropout_rate", "deterministic")
        options = {name: o for name, o in self.call.options().items() if name not in theirs}
        return options | {"kv_layout": self.pages.kv_layout}

    def arrays(self, inputs: AttentionInputs) -> dict[str, np.ndarray]:
        """The operands by the names of ``paged_prefill``'s arguments, with the keys of ``inputs``.

        Rows of the store that belong to no request hold NaN and infinity.
        """
        assert inputs.cu_seqlens_q is not None

        def rows(packed: np.ndarray) -> list[np.ndarray]:
            return [packed[self.call.rows(n)[1]] for n in range(self.call.sequences)]

        paged = cut(self.name, self.pages, rows(inputs.key), rows(inputs.value), inputs.query)
        return paged | {"qo_indptr": inputs.cu_seqlens_q} | _per_head(inputs)


def _per_head(inputs: DecodeInputs | AttentionInputs) -> dict[str, np.ndarray]:
    given = {"sinks": inputs.sinks, "alibi_slopes": inputs.alibi_slopes}
    return {name: array for name, array in given.items() if array is not None}


def cut(
    seed: str,
    pages: Pages,
    keys: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    query: np.ndarray,
) -> dict[str, np.ndarray]:
    """Lays rows of requests into pages at random places of a store.

    Args:
      seed: other text gives other places.
      pages: how.
      keys: the rows [n, Hkv, D] of each request.
      values: likewise.
      query: goes along; its dtype is that of the store.

    Returns:
      The query, the store and its page table by the names of the arguments.
    """
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    size = pages.page_size
    lengths = np.array([len(rows) for rows in keys], np.int64)
    counts = -(-lengths // size)
    if pages.opened:
        counts = lengths // size + 1
    used = int(counts.sum())
    ids = rng.permutation(used + pages.spare_pages)[:used].astype(np.int32)
    bounds = np.concatenate([[0], np.cumsum(counts)])

    def store(requests: Sequence[np.ndarray]) -> np.ndarray:
        heads, dim = query.shape[1], query.shape[2]
        heads = requests[0].shape[1] if len(requests) else heads
        array = np.empty((used + pages.spare_pages, size, heads, dim), query.dtype)
        array[:] = np.where(np.arange(size) % 2, np.inf, np.nan)[:, None, None].astype(query.dtype)
        for request, rows in enumerate(requests):
            own = ids[bounds[request] : bounds[request + 1]]
            for nth, start in enumerate(range(0, len(rows), size)):
                part = rows[start : start + size]
                array[own[nth], : len(part)] = part
        return array if pages.kv_layout == "NHD" else np.ascontiguousarray(array.swapaxes(1, 2))

    outside = np.array([2**31 - 1, -1, len(ids) + pages.spare_pages, -(2**31)], np.int32)
    return {
        "query": query,
        "k_pages": store(keys),
        "v_pages": store(values),
        "page_indices": np.concatenate(
            [
                np.resize(outside, pages.first_entry),
                ids,
                np.resize(outside, pages.unused_entries),
            ]
        ),
        "page_indptr": (bounds + pages.first_entry).astype(np.int32),
        # What a request without pages has there means nothing.
        "last_page_len": np.where(counts > 0, lengths - (counts - 1) * size, 7).astype(np.int32),
    }


DTYPES = ("bfloat16", "float16", "float32")
LAYOUTS = ("HND", "NHD")
_PAGE_SIZES = (1, 3, 16, 64, 128)
_HEAD_DIMS = (1, 40, 64, 80, 128, 256)
_GROUPS = (1, 4, 7, 8, 16, 20, 64)

# Options that a server uses together; "everything" is all there is.
_DECODE_OPTIONS: dict[str, dict[str, Any]] = {
    "window": {"local_window_size": 50},
    "window-sink-tokens": {"local_window_size": (33, 0), "sink_tokens": 4},
    "sinks": {"sinks": True, "scale": 0.3},
    "alibi": {"alibi_slopes": "request"},
    "soft-cap": {"logits_soft_cap": 5.0, "scale": 1.0},
    "everything": {
        "local_window_size": (70, 3),
        "sink_tokens": 5,
        "sinks": True,
        "alibi_slopes": "head",
        "logits_soft_cap": 8.0,
        "scale": 0.2,
    },
}


def _paged_decode_cases() -> tuple[PagedDecodeCase, ...]:
    cases: list[PagedDecodeCase] = []

    def add(name: str, pages: Pages, lengths: tuple[int, ...], **fields: Any) -> None:
        call = DecodeCase(
            name,
            batch=len(lengths),
            capacity=max((*lengths, 0)),
            lengths=lengths,
            **fields,
        )
        cases.append(PagedDecodeCase(call, pages))

    # Every dtype with every head dimension and page size; layouts and groups go round.
    for i, dtype in enumerate(DTYPES):
        for j, head_dim in enumerate(_HEAD_DIMS):
            for k, page_size in enumerate(_PAGE_SIZES):
                turn = i + j + k
                group = _GROUPS[(i + 2 * j + 3 * k) % len(_GROUPS)]
                add(
                    f"{dtype}-{head_dim}-page-{page_size}",
                    Pages(page_size, LAYOUTS[turn % 2], first_entry=turn % 3, opened=turn % 4 > 2),
                    (0, 1, 130, 48),
                    dtype=dtype,
                    head_dim=head_dim,
                    group=group,
                    kv_heads=1 + turn % 2,
                )
    for i, group in enumerate(_GROUPS):
        for dtype in ("bfloat16", "float32"):
            pages = Pages(_PAGE_SIZES[i % 5], LAYOUTS[i % 2])
            add(f"group-{group}-{dtype}", pages, (200, 65), dtype=dtype, group=group, head_dim=128)

    # Every mix of options, page size by page size.
    for i, (name, options) in enumerate(_DECODE_OPTIONS.items()):
        for j, page_size in enumerate(_PAGE_SIZES):
            add(
                f"{name}-page-{page_size}",
                Pages(page_size, LAYOUTS[(i + j) % 2], opened=j % 2 > 0),
                (300, 0, 7, 171),
                dtype=DTYPES[(i + j) % 3],
                head_dim=(64, 128, 80)[(i + j) % 3],
                num_splits=(None, 3)[(i + j) % 2],
                **options,
            )

    # Lengths: around the pages, none, very uneven.
    add("lengths-of-pages", Pages(16), (16, 32, 15, 17, 31, 33, 1, 0), head_dim=128)
    add("lengths-of-pages-opened", Pages(16, opened=True), (16, 32, 15, 17, 0), head_dim=128)
    add("lengths-zero", Pages(16), (0, 0, 0), sinks=True)
    add("lengths-zero-opened", Pages(16, "NHD", opened=True), (0, 0, 0), dtype="float32")
    add("lengths-padded-batch", Pages(4, first_entry=9), (21, 3, *[0] * 30), head_dim=128)
    add("no-requests", Pages(16), ())
    add("no-entries", Pages(16, unused_entries=0), (0, 0))
    add("no-pages", Pages(16, spare_pages=0), (0, 0))
    for dtype, page_size in (("bfloat16", 16), ("bfloat16", 1), ("float16", 64), ("float32", 16)):
        add(
            f"uneven-{dtype}-page-{page_size}",
            Pages(page_size),
            (3, 0, 17, 8193, 1, 64, 0, 130, 5),
            dtype=dtype,
            head_dim=128,
            kv_heads=2,
        )
    add("uneven-window", Pages(16), (3000, 2, 0, 31), local_window_size=100, sink_tokens=2)
    add("uneven-splits", Pages(16, "NHD"), (5000, 0, 3, 700), num_splits=13, head_dim=128)
    add("ragged", Pages(16), tuple((37 * i) % 258 for i in range(33)), head_dim=128)
    add("serving", Pages(16), (8192,), kv_heads=8, head_dim=128)
    return tuple(cases)


PAGED_DECODE_CASES: tuple[PagedDecodeCase, ...] = _paged_decode_cases()

# Chunks of several requests: rows and keys of each; a decode, a chunk in the middle of a prompt, a
# prompt that is read at once, a request without rows, one without keys, one with fewer keys than
# rows, and a chunk that follows a long history.
_MIXED = {"rows": (1, 40, 70, 0, 9, 30, 17), "keys": (93, 130, 70, 50, 0, 12, 400)}
PREFILL_OPTIONS: dict[str, dict[str, Any]] = {
    "full": {"is_causal": False},
    "window": {"local_window_size": (50, 20)},
    "window-full": {"local_window_size": (30, 11), "is_causal": False, "sink_tokens": 2},
    "window-left": {"local_window_size": (33, None), "is_causal": False},
    "window-right": {"local_window_size": (None, 3), "is_causal": False},
    "sink-tokens": {"local_window_size": 16, "sink_tokens": 5},
    "sinks": {"sinks": True, "scale": 0.3},
    "alibi": {"alibi_slopes": "batch"},
    "alibi-full": {"alibi_slopes": "head", "is_causal": False},
    "soft-cap": {"logits_soft_cap": 5.0, "scale": 1.0},
    "everything": {
        "local_window_size": (60, 0),
        "sink_tokens": 3,
        "sinks": True,
        "alibi_slopes": "batch",
        "logits_soft_cap": 8.0,
        "scale": 0.2,
    },
}


def prefill_case(
    name: str,
    pages: Pages,
    rows: tuple[int, ...] = _MIXED["rows"],
    keys: tuple[int, ...] = _MIXED["keys"],
    before: int = 0,
    after: int = 0,
    **fields: Any,
) -> PagedPrefillCase:
    """A causal case, unless ``fields`` of the call say otherwise.

    ``before`` and ``after`` the rows of the requests lie some that are of none.
    """
    bounds = tuple(int(n) for n in before + np.cumsum([0, *rows]))
    call = AttentionCase(
        name,
        cu_seqlens_q=bounds,
        cu_seqlens_k=tuple(int(n) for n in np.cumsum([0, *keys])),
        query_length=bounds[-1] + after,
        key_length=sum(keys),
        **{"is_causal": True, **fields},
    )
    return PagedPrefillCase(call, pages)


def _paged_prefill_cases() -> tuple[PagedPrefillCase, ...]:
    cases: list[PagedPrefillCase] = []

    def add(
        name: str,
        pages: Pages,
        rows: tuple[int, ...] = _MIXED["rows"],
        keys: tuple[int, ...] = _MIXED["keys"],
        **fields: Any,
    ) -> None:
        cases.append(prefill_case(name, pages, rows, keys, **fields))

    for i, dtype in enumerate(DTYPES):
        for j, head_dim in enumerate(_HEAD_DIMS):
            for k in range(2):
                page_size = _PAGE_SIZES[(i + j + 2 * k) % 5]
                turn = i + j + k
                group = _GROUPS[(2 * i + j + 3 * k) % len(_GROUPS)]
                add(
                    f"{dtype}-{head_dim}-page-{page_size}",
                    Pages(page_size, LAYOUTS[turn % 2], first_entry=turn % 3, opened=turn % 4 > 2),
                    before=3 * (turn % 2),
                    after=5 * (turn % 3),
                    dtype=dtype,
                    head_dim=head_dim,
                    group=group,
                    kv_heads=1 if group > 8 else 2,
                )
    for i, (name, options) in enumerate(PREFILL_OPTIONS.items()):
        for j, page_size in enumerate(_PAGE_SIZES):
            add(
                f"{name}-page-{page_size}",
                Pages(page_size, LAYOUTS[(i + j) % 2], opened=j % 2 > 0),
                after=j,
                dtype=DTYPES[(i + j) % 3],
                head_dim=(64, 128, 80)[(i + j) % 3],
                **options,
            )
    add("one-decode", Pages(16), (1,), (257,), head_dim=128)
    add("one-prompt", Pages(16), (200,), (200,), head_dim=128)
    add("only-decodes", Pages(16, "NHD"), (1,) * 9, (5, 0, 1, 16, 17, 300, 31, 32, 33))
    add("fewer-keys-than-rows", Pages(3), (50, 20), (7, 20), sinks=True)
    add("fewer-keys-than-rows-full", Pages(3), (50, 20), (7, 0), is_causal=False)
    add("short-max", Pages(16), max_seqlens=(8, 8), head_dim=128)
    add("short-max-float32", Pages(1), max_seqlens=(1, 1), dtype="float32")
    add("long-max", Pages(64), max_seqlens=(1000, 2000))
    add("no-rows", Pages(16), (0, 0), (30, 5))
    add("no-keys", Pages(16), (3, 4), (0, 0))
    add("no-pages", Pages(16, spare_pages=0, unused_entries=0), (3, 4), (0, 0))
    add("no-requests", Pages(16), (), (), after=4)
    add("uneven", Pages(16), (300, 1, 1, 5, 0, 1), (3000, 2, 0, 31, 9, 700), head_dim=128)
    add("uneven-page-1", Pages(1), (300, 1, 1), (1500, 40, 0), head_dim=128, group=4)
    return tuple(cases)


PAGED_PREFILL_CASES: tuple[PagedPrefillCase, ...] = _paged_prefill_cases()
