"""What bench_paged.py measures: kinds of cells, and their jobs. Imports no framework."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from cells import Rotating

PAGE = 16
_BYTES = 2  # bfloat16


class Job(NamedTuple):
    """What one row of a cell measures: an implementation, and what sets it apart from others."""

    impl: str
    page_size: int | None = None
    graph: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The part of the row's config that the cell does not know."""
        extra = {"page_size": self.page_size, "graph": self.graph}
        return {name: value for name, value in extra.items() if value is not None}

    @property
    def engine(self) -> str:
        """The worker that it runs in."""
        if self.graph == "loop":
            return "jax_loop"
        other = {
            "read_ceiling": "ceiling",
            "device_copy": "ceiling",
            "torch_cudnn": "torch",
            "flashinfer": "torch",
        }
        return other.get(self.impl, "jax")


def paged(*page_sizes: int) -> tuple[Job, ...]:
    """Ours on pages of these sizes."""
    return tuple(Job("jax_baracuda", page_size) for page_size in page_sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PagedCell(Rotating):
    """What every cell has: bf16, 32 query heads of 128."""

    jobs: tuple[Job, ...]
    kv_heads: int = 8
    query_heads: int = 32
    head_dim: int = 128
    most_calls: int = 96

    op = ""
    passes = "fwd"

    @property
    def name(self) -> str:
        """As in --cells."""
        raise NotImplementedError

    @property
    def shape(self) -> dict[str, Any]:
        """What the row's config says of this cell alone."""
        raise NotImplementedError

    @property
    def config(self) -> dict[str, Any]:
        """The row's config, without that of the job."""
        heads = {"Hq": self.query_heads, "Hkv": self.kv_heads, "D": self.head_dim}
        return self.shape | heads | {"dtype": "bfloat16", "mb": self.bytes / 1e6}

    @property
    def row_bytes(self) -> int:
        """K and V of one token."""
        return 2 * self.kv_heads * self.head_dim * _BYTES

    def store_shape(self, rows: int, page_size: int) -> tuple[int, int, int, int]:
        """[P, Hkv, page_size, D] of a store of so many rows."""
        return rows // page_size, self.kv_heads, page_size, self.head_dim

    def rate(self, ms: float) -> dict[str, float]:
        """The row's speed."""
        return {"gbps": self.bytes / ms / 1e6}


def padded(lengths: Iterable[int], multiple: int = 64) -> int:
    """Rows that hold all of the requests, whatever the size of the pages."""
    return sum(-(-length // multiple) * multiple for length in lengths)


class Table(NamedTuple):
    """A page table, int32: request b has the pages indices[indptr[b] : indptr[b + 1]]."""

    indices: np.ndarray
    indptr: np.ndarray
    last_page_len: np.ndarray


def page_table(lengths: Iterable[int], page_size: int, pages: int, seed: int = 0) -> Table:
    """A table of so many pages in random order, as they are in a server that has run for a while.

    ``pages`` must be enough for the lengths; what they do not need is named by no request.
    """
    counts = np.array([-(-length // page_size) for length in lengths])
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    last = np.array(lengths) - np.maximum(counts - 1, 0) * page_size
    order = np.random.default_rng(seed).permutation(pages)[: indptr[-1]]
    return Table(order.astype(np.int32), indptr, last.astype(np.int32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeCell(PagedCell):
    """One query row a request; ``uneven`` names lengths that are not all the same."""

    lengths: tuple[int, ...]
    uneven: str = ""
    control: str = ""  # the uneven cell whose bytes this one reads with even lengths

    op = "paged_decode"

    @property
    def name(self) -> str:
        even = f"{self.kv_heads}x{self.batch}x{self.lengths[0]}"
        return self.uneven or (f"even-{self.control}" if self.control else even)

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        return max(self.lengths)

    @property
    def rows(self) -> int:
        """Rows of a store."""
        return padded(self.lengths)

    @property
    def bytes(self) -> int:
        """K and V of every live row, read once."""
        return sum(self.lengths) * self.row_bytes

    def cache_shape(self, layout: str) -> tuple[int, int, int, int]:
        """Even lengths as contiguous caches; "HND" only."""
        assert layout == "HND"
        return self.batch, self.kv_heads, self.capacity, self.head_dim

    @property
    def checked(self) -> int:
        """The request that is checked: the last that has a length."""
        return max(b for b, length in enumerate(self.lengths) if length)

    @property
    def shape(self) -> dict[str, Any]:
        lengths = self.uneven or "uniform"
        extra = {"control": self.control} if self.control else {}
        return {"B": self.batch, "K": self.capacity, "lengths": lengths} | extra

    def table(self, page_size: int) -> Table:
        return page_table(self.lengths, page_size, self.rows // page_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefillCell(PagedCell):
    """Requests that each bring the last rows of their history, causal."""

    queries: tuple[int, ...]
    lengths: tuple[int, ...]
    mixed: str = ""

    op = "paged_prefill"

    @property
    def name(self) -> str:
        chunk, history = self.queries[0], self.lengths[0] - self.queries[0]
        return self.mixed or f"prefill-{len(self.queries)}x{chunk}+{history}"

    @property
    def tokens(self) -> int:
        return sum(self.queries)

    @property
    def rows(self) -> int:
        """Rows of a store."""
        return padded(self.lengths)

    @property
    def bytes(self) -> int:
        """K and V, read once: for the record, since this part counts FLOPs."""
        return sum(self.lengths) * self.row_bytes

    @property
    def flops(self) -> float:
        """4 D FLOPs a head, row and key that it sees."""
        pairs = sum(
            n * (length - n) + n * (n + 1) / 2
            for n, length in zip(self.queries, self.lengths, strict=True)
        )
        return 4 * pairs * self.head_dim * self.query_heads

    @property
    def calls(self) -> int:
        """Calls a program, each with a query of its own: about two milliseconds of them."""
        return int(min(8, self.most_calls, max(1, 2e-3 * 350e12 / self.flops)))

    @property
    def shape(self) -> dict[str, Any]:
        chunk = {"chunk": self.queries[0], "history": self.lengths[0] - self.queries[0]}
        return {"B": len(self.queries), "T": self.tokens} | (
            {"mixed": self.mixed} if self.mixed else chunk
        )

    def table(self, page_size: int) -> Table:
        return page_table(self.lengths, page_size, self.rows // page_size)

    def rate(self, ms: float) -> dict[str, float]:
        return {"tflops": self.flops / ms / 1e9}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppendCell(PagedCell):
    """``new`` rows for each of ``batch`` requests, behind ``history`` rows and a few more."""

    op: str
    batch: int
    new: int
    history: int
    rope: bool = False

    passes = "step"

    @property
    def name(self) -> str:
        kind = "paged" if self.op == "paged_append" else "cache"
        return f"{kind}-{self.tokens}{'-rope' if self.rope else ''}"

    @property
    def tokens(self) -> int:
        return self.batch * self.new

    @property
    def capacity(self) -> int:
        """Rows a request has room for: a multiple of the page size."""
        return -(-(self.history + PAGE + self.new) // PAGE) * PAGE

    @property
    def starts(self) -> np.ndarray:
        """Where each request's new rows begin, int32."""
        return (self.history + np.arange(self.batch) * 7 % PAGE).astype(np.int32)

    @property
    def bytes(self) -> int:
        """The rows of K and V, and with RoPE of the query, read and written."""
        query = self.query_heads * self.head_dim * _BYTES if self.rope else 0
        return 2 * self.tokens * (self.row_bytes + query)

    @property
    def shape(self) -> dict[str, Any]:
        return {"B": self.batch, "T": self.tokens, "rope": self.rope}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeCell(PagedCell):
    """apply_rope alone on [tokens, Hq, D]."""

    tokens: int

    op = "apply_rope"
    passes = "step"

    @property
    def name(self) -> str:
        return f"rope-{self.tokens}"

    @property
    def bytes(self) -> int:
        """Read and written once."""
        return 2 * self.tokens * self.query_heads * self.head_dim * _BYTES

    @property
    def shape(self) -> dict[str, Any]:
        return {"T": self.tokens}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixCell(PagedCell):
    """Requests that share a prefix and each have a suffix of their own."""

    batch: int
    prefix: int
    suffix: int

    op = "shared_prefix_decode"

    @property
    def name(self) -> str:
        return f"shared-{self.batch}x{self.prefix}+{self.suffix}"

    @property
    def checked(self) -> int:
        """The request that is checked."""
        return self.batch - 1

    @property
    def rows(self) -> int:
        """Different rows: the prefix once."""
        return padded((self.prefix, *[self.suffix] * self.batch))

    @property
    def bytes(self) -> int:
        """Every row once; a plain decode asks for the prefix a time for each request."""
        return (self.prefix + self.batch * self.suffix) * self.row_bytes

    @property
    def shape(self) -> dict[str, Any]:
        return {"B": self.batch, "prefix": self.prefix, "suffix": self.suffix}

    def tables(self, page_size: int) -> tuple[np.ndarray, Table, Table]:
        """The prefix's pages; the table of the suffixes; that of prefix and suffix together."""
        lengths = (self.prefix, *[self.suffix] * self.batch)
        indices, indptr, last = page_table(lengths, page_size, self.rows // page_size)
        first = indptr[1]
        prefix, suffixes = indices[:first], indices[first:].reshape(self.batch, -1)
        whole = np.concatenate([np.tile(prefix, (self.batch, 1)), suffixes], axis=1)
        own = Table(suffixes.reshape(-1), indptr[1:] - first, last[1:])
        bounds = np.arange(self.batch + 1, dtype=np.int32) * whole.shape[1]
        return prefix, own, Table(whole.reshape(-1), bounds, last[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayersCell(PagedCell):
    """A decode step through stacked layers: each appends a row a request and reads them all."""

    layers: int
    batch: int
    length: int  # with the new row
    steps: int = 2  # of a program

    op = "decode_step"
    passes = "step"

    @property
    def name(self) -> str:
        return f"layers-{self.layers}x{self.batch}x{self.length}"

    @property
    def pages(self) -> int:
        """Of one layer's store."""
        return self.batch * padded((self.length,)) // PAGE

    @property
    def bytes(self) -> int:
        """What the layers read of K and V in a step."""
        return self.layers * self.batch * self.length * self.row_bytes

    @property
    def shape(self) -> dict[str, Any]:
        return {"layers": self.layers, "B": self.batch, "K": self.length}

    def table(self) -> Table:
        return page_table((self.length,) * self.batch, PAGE, self.pages)
