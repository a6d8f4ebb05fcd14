"""Validation and workspace size of the paged ops: pure functions of shapes and static options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypedDict

from jax_baracuda._src import validation
from jax_baracuda._src.attention import shapes as attention_shapes
from jax_baracuda._src.decode import shapes as decode_shapes
from jax_baracuda._src.validation import HasShape

Kind = Literal["paged_decode", "paged_prefill"]

# The operands of the primitives, in their order.
STORES = ("k_pages", "v_pages")
TABLE = ("page_indices", "page_indptr", "last_page_len")
PER_HEAD = ("sinks", "alibi_slopes")
INTEGERS = ("qo_indptr", *TABLE)
OPERANDS: dict[Kind, tuple[str, ...]] = {
    "paged_decode": ("query", *STORES, *TABLE, *PER_HEAD),
    "paged_prefill": ("query", *STORES, "qo_indptr", *TABLE, *PER_HEAD),
}
# Limits of the kernels' 32-bit indices.
MAX_TOKENS = 2**30
MAX_STORE_ROWS = 2**32

DecodeOptions = decode_shapes.DecodeOptions


class PrefillOptions(TypedDict):
    """The static options in the form that the primitive, the kernel and the reference take."""

    nhd: bool
    scale: float
    causal: bool
    window_left: int  # -1: unlimited
    window_right: int
    sink_tokens: int
    logits_soft_cap: float  # 0: none
    max_seqlen_q: int


OPTIONS: dict[Kind, tuple[str, ...]] = {
    "paged_decode": tuple(DecodeOptions.__annotations__),
    "paged_prefill": tuple(PrefillOptions.__annotations__),
}


@dataclasses.dataclass(frozen=True)
class PagedShape:
    """The sizes of one call, checked."""

    rows: int  # of the query: B, or T
    requests: int  # B
    q_heads: int
    kv_heads: int
    head_dim: int
    pages: int  # P, of the store
    page_size: int
    entries: int  # N, of the page table
    dtype: str


def paged_shape(
    query: HasShape,
    k_pages: HasShape,
    page_indices: HasShape,
    last_page_len: HasShape,
    *,
    nhd: bool,
) -> PagedShape:
    """The sizes of operands that are known to be right."""
    rows, q_heads, head_dim = query.shape
    pages, *middle, _ = k_pages.shape
    page_size, kv_heads = middle if nhd else middle[::-1]
    return PagedShape(
        rows=rows,
        requests=last_page_len.shape[0],
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        pages=pages,
        page_size=page_size,
        entries=page_indices.shape[0],
        dtype=validation.dtype_name(query),
    )


def decode_workspace_bytes(shape: PagedShape, num_splits: int) -> int:
    """Scratch memory of paged_decode: that of flash_decode, of whose kernels it is one.

    Every entry of the table may be of one request. That costs no memory: what the kernel keeps is
    bounded by how many of its blocks run at once.
    """
    contiguous = decode_shapes.DecodeShape(
        batch=shape.requests,
        q_heads=shape.q_heads,
        kv_heads=shape.kv_heads,
        capacity=shape.entries * shape.page_size,
        head_dim=shape.head_dim,
        dtype=shape.dtype,
    )
    return decode_shapes.workspace_bytes(contiguous, num_splits)


# Scratch memory of paged_prefill: the counter of tiles of the kernel for Hopper GPUs.
PREFILL_WORKSPACE_BYTES = 256


def hopper_obstacles(shape: PagedShape) -> list[str]:
    """What keeps a call of paged_prefill from the kernel for Hopper GPUs."""
    obstacles = {
        "float32": shape.dtype == "float32",
        "head dimensions that are not multiples of 8": shape.head_dim % 8 > 0,
        "page sizes that are not multiples of 16": shape.page_size % 16 > 0,
        "a store or a table that is empty": 0 in (shape.pages, shape.entries),
    }
    return [name for name, there in obstacles.items() if there]


def check_prefill_options(
    head_dim: int,
    *,
    is_causal: bool = True,
    max_seqlen_q: int,
    kv_layout: str = "HND",
    scale: float | None = None,
    local_window_size: int | Sequence[int | None] | None = None,
    sink_tokens: int = 0,
    logits_soft_cap: float | None = None,
) -> PrefillOptions:
    """Checks the options of paged_prefill; raises ValueError by name."""
    options = attention_shapes.check_options(
        head_dim,
        scale=scale,
        is_causal=is_causal,
        local_window_size=local_window_size,
        sink_tokens=sink_tokens,
        logits_soft_cap=logits_soft_cap,
        max_seqlen_q=max_seqlen_q,
    )
    return PrefillOptions(
        nhd=validation.check_layout(kv_layout),
        scale=options["scale"],
        causal=options["causal"],
        window_left=options["window_left"],
        window_right=options["window_right"],
        sink_tokens=options["sink_tokens"],
        logits_soft_cap=options["logits_soft_cap"],
        max_seqlen_q=options["max_seqlen_q"],
    )


def check_operands(
    query: HasShape,
    k_pages: HasShape,
    v_pages: HasShape,
    page_indices: HasShape,
    page_indptr: HasShape,
    last_page_len: HasShape,
    *,
    qo_indptr: HasShape | None = None,
    sinks: HasShape | None = None,
    alibi_slopes: HasShape | None = None,
    kv_layout: str,
) -> PagedShape:
    """Checks the arrays against each other; raises ValueError or NotImplementedError by name.

    With ``qo_indptr`` they are those of paged_prefill, and otherwise of paged_decode.
    """
    nhd = validation.check_layout(kv_layout)
    validation.check_rank("query", query, "[B, Hq, D]" if qo_indptr is None else "[T, Hq, D]")
    store = "[P, page_size, Hkv, D]" if nhd else "[P, Hkv, page_size, D]"
    decode_shapes.check_keys(
        query, k_pages, v_pages, names=STORES, layout=store, kv_layout=kv_layout
    )
    validation.check_rank("page_indices", page_indices, "[N]")
    validation.check_integers("page_indices", page_indices, tuple(page_indices.shape), "[N]")
    validation.check_rank("last_page_len", last_page_len, "[B]")
    requests = last_page_len.shape[0] if qo_indptr is not None else query.shape[0]
    validation.check_integers("last_page_len", last_page_len, (requests,), "[B]")
    validation.check_integers("page_indptr", page_indptr, (requests + 1,), "[B + 1]")
    if qo_indptr is not None:
        validation.check_integers("qo_indptr", qo_indptr, (requests + 1,), "[B + 1]")
    shape = paged_shape(query, k_pages, page_indices, last_page_len, nhd=nhd)
    heads = shape.q_heads
    if sinks is not None:
        validation.check_per_head("sinks", sinks, [(heads,)], "[Hq]")
    if alibi_slopes is not None:
        rows: list[tuple[int, ...]] = [(heads,), (requests, heads)]
        validation.check_per_head("alibi_slopes", alibi_slopes, rows, "[Hq] or [B, Hq]")
    _check_sizes(shape, k_pages)
    return shape


def _check_sizes(shape: PagedShape, k_pages: HasShape) -> None:
    """Raises unless the kernels can count that far; a symbolic size passes."""

    def at_least(count: int, limit: int) -> bool:
        return isinstance(count, int) and count >= limit

    if isinstance(shape.page_size, int) and shape.page_size < 1:
        raise ValueError(
            f"k_pages has shape {k_pages.shape}, with pages of {shape.page_size} rows."
        )
    if at_least(shape.entries * shape.page_size, MAX_TOKENS):
        raise NotImplementedError(
            f"page_indices has {shape.entries} entries, of pages of {shape.page_size} rows; "
            "supported are < 2**30 rows."
        )
    if at_least(shape.pages * shape.page_size * shape.kv_heads, MAX_STORE_ROWS):
        raise NotImplementedError(
            f"k_pages has shape {k_pages.shape}; supported are < 2**32 rows of all heads."
        )
    for what, count in (("rows", shape.rows), ("requests", shape.requests)):
        if at_least(count, MAX_TOKENS):
            raise NotImplementedError(f"query has {count} {what}; supported are < 2**30.")
