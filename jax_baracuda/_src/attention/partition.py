"""How flash_attention spreads over a mesh: which dimensions of its operands go together.

The batch and the heads may stay sharded, in the forward and in the backward pass. The rows of query
and key and the head dimensions may not: to spread one long sequence over devices, call
flash_attention in shard_map with return_lse=True and merge the states. A gradient that is a sum
over what is spread (that of a bias without a batch, of keys whose query heads are spread) is added
up over the devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from jax_baracuda._src import sharding
from jax_baracuda._src.attention import shapes
from jax_baracuda._src.attention.shapes import Pass

Results = tuple[jax.Array, ...]
Call = Callable[..., Any]

in_shard_map = sharding.in_shard_map
in_auto_mode = sharding.in_auto_mode

_WORDS = {
    "s": "query rows",
    "k": "keys",
    "d": "head dimension",
    "e": "head dimension",
    "z": "sequences of a pack",
    "w": "words",
}


def layout(kind: Pass, operand_shapes: Sequence[tuple[int, ...]]) -> sharding.Layout:
    """The dimensions of a pass whose operands have these shapes."""
    names = shapes.OPERANDS[kind]
    packed = operand_shapes[names.index("cu_seqlens_q")] != (0,)

    def letters(name: str, shape: tuple[int, ...]) -> str:
        if 0 in shape:
            return ""
        dims = shapes.DIMENSIONS[name] if packed else shapes.DIMENSIONS[name].replace("n", "b")
        if name not in shapes.BROADCAST:
            return dims
        return "".join("1" if size == 1 else dim for dim, size in zip(dims, shape, strict=True))

    dims = dict(zip(names, map(letters, names, operand_shapes), strict=True))
    return sharding.Layout(
        op="flash_attention",
        names=names,
        operands=tuple(dims.values()),
        results=tuple(dims.get(name) or shapes.DIMENSIONS[name] for name in shapes.RESULTS[kind]),
        words=_WORDS,
    )


def partitioned(kind: Pass, call: Call) -> Call:
    """``call`` (the kernel, or the reference in a test) with the sharding rule around it."""

    def with_rule(*operands: jax.Array, **options: Any) -> Results:
        dims = layout(kind, [operand.shape for operand in operands])
        return sharding.spread(functools.partial(call, **options), dims, *operands)

    return with_rule


def result_specs(kind: Pass, avals: Sequence[Any]) -> list[P]:
    """The types of the results from those of the operands; ValueError if they disagree."""
    return sharding.result_specs(layout(kind, [aval.shape for aval in avals]), avals)
