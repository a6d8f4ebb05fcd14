"""How the paged ops spread over a mesh: the dimensions of operands, in ``sharding``'s letters.

The heads may stay sharded, of the query and of the stores. The pages of a store may not, nor its
rows or the head dimension: no page table could name them. Requests may not either, which share one
table; to spread those, give every device a store and a table of its own in shard_map.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from jax_baracuda._src import sharding
from jax_baracuda._src.paged import shapes

Call = Callable[..., Any]
Results = tuple[jax.Array, ...]

_WORDS = {
    "d": "head dimension",
    "e": "head dimension",
    "i": "entries",
    "p": "pages",
    "r": "requests",
    "s": "rows of a page",
    "t": "rows",
}


def layout(
    kind: shapes.Kind, operand_shapes: Sequence[tuple[int, ...]], *, nhd: bool
) -> sharding.Layout:
    """The dimensions of operands of these shapes."""
    rows = "r" if kind == "paged_decode" else "t"
    letters = dict.fromkeys(shapes.STORES, "pshe" if nhd else "phse")
    letters |= {"query": f"{rows}qd", "sinks": "rq", "alibi_slopes": "rq"}
    letters |= {"last_page_len": "r"}  # and of all other integers "i"
    names = shapes.OPERANDS[kind]
    return sharding.Layout(
        op=kind,
        names=names,
        operands=tuple(
            "" if 0 in shape else letters.get(name, "i")
            for name, shape in zip(names, operand_shapes, strict=True)
        ),
        results=(letters["query"], f"{rows}q"),
        words=_WORDS,
        fixed="pse",
    )


def partitioned(kind: shapes.Kind, call: Call) -> Call:
    """``call`` (the kernel, or the reference in a test) with the sharding rule around it."""

    def with_rule(*operands: jax.Array, nhd: bool, **options: Any) -> Results:
        call_here = functools.partial(call, nhd=nhd, **options)
        dims = layout(kind, [operand.shape for operand in operands], nhd=nhd)
        return sharding.spread(call_here, dims, *operands)

    return with_rule


def in_auto_mode(
    kind: shapes.Kind, call: Call, operands: Sequence[jax.Array], *, nhd: bool
) -> tuple[jax.Array, jax.Array]:
    """``call(*operands)``; on an Explicit mesh the results are typed and the inside left to XLA."""
    specs = functools.partial(result_specs, kind, nhd=nhd)
    out, lse = sharding.in_auto_mode(call, operands, specs)
    return out, lse


def result_specs(kind: shapes.Kind, avals: Sequence[Any], *, nhd: bool) -> list[P]:
    """The types of the results from those of the operands; ValueError if they disagree."""
    dims = layout(kind, [aval.shape for aval in avals], nhd=nhd)
    return sharding.result_specs(dims, avals)
