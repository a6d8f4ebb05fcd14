"""How flash_decode spreads over a mesh: the dimensions of its operands, in ``sharding``'s letters.

The batch and the heads may stay sharded. The cache rows (K) and the head dimension (D) may not. To
spread one long cache over devices, call flash_decode in shard_map with return_lse=True and merge
the states. No cache is moved for the sake of a query, which is small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from jax_baracuda._src import sharding

Results = tuple[jax.Array, jax.Array]
Call = Callable[..., Results]

OPERANDS = ("query", "key", "value", "kv_lengths", "sinks", "alibi_slopes")


def layout(shapes: Sequence[tuple[int, ...]], *, nhd: bool) -> sharding.Layout:
    """The dimensions of operands of these shapes, in the order of OPERANDS."""
    cache = "bkhd" if nhd else "bhkd"
    batch = shapes[0][0]
    rows = ["bq" if shape[0] == batch else "1q" for shape in shapes[4:]]
    letters = ["bqd", cache, cache, "b", *rows]
    return sharding.Layout(
        op="flash_decode",
        names=OPERANDS,
        operands=tuple(
            dims if len(dims) == len(shape) and 0 not in shape else ""
            for dims, shape in zip(letters, shapes, strict=True)
        ),
        results=("bqd", "bq"),
        words={"k": "cache rows", "d": "head dimension"},
    )


def partitioned(call: Call) -> Call:
    """``call`` (the kernel, or the reference in a test) with the sharding rule around it."""

    def with_rule(*operands: jax.Array, nhd: bool, **options: Any) -> Results:
        call_here = functools.partial(call, nhd=nhd, **options)
        dims = layout([operand.shape for operand in operands], nhd=nhd)
        out, lse = sharding.spread(call_here, dims, *operands)
        return out, lse

    return with_rule


def in_auto_mode(call: Call, operands: Sequence[jax.Array], *, nhd: bool) -> Results:
    """``call(*operands)``; on an Explicit mesh the results are typed and the inside left to XLA."""
    out, lse = sharding.in_auto_mode(call, operands, functools.partial(result_specs, nhd=nhd))
    return out, lse


def result_specs(avals: Sequence[Any], *, nhd: bool) -> tuple[P, P]:
    """The types of the results from those of the operands; ValueError if they disagree."""
    out, lse = sharding.result_specs(layout([aval.shape for aval in avals], nhd=nhd), avals)
    return out, lse
