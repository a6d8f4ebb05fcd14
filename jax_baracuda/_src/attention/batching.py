"""vmap of the flash_attention primitives: the mapped axis folds into the batch, or the packs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from jax_baracuda._src.attention import shapes


def batch(
    primitive: Primitive,
    kind: shapes.Pass,
    args: Sequence[jax.Array],
    dims: Sequence[int | None],
    **params: Any,
) -> tuple[list[jax.Array], list[int]]:
    """N calls with B sequences are one call with N * B: for every mix of mapped operands."""
    names = shapes.OPERANDS[kind]
    size = next(a.shape[dim] for a, dim in zip(args, dims, strict=True) if dim is not None)
    # [N or 1, ...], where 1 stands for an operand that is not mapped.
    mapped = {
        name: array[None] if dim is None else jnp.moveaxis(array, dim, 0)
        for name, array, dim in zip(names, args, dims, strict=True)
    }
    unmapped = {name for name, dim in zip(names, dims, strict=True) if dim is None}
    sequences = mapped["query"].shape[1]
    if mapped["cu_seqlens_q"].ndim == 3:
        sequences *= mapped["cu_seqlens_q"].shape[2] - 1

    of_bias = "bias" in shapes.RESULTS[kind]  # whether its gradient is wanted

    def fold(name: str) -> jax.Array:
        array = mapped[name]
        if array.shape[1:] == (0,):  # missing
            return array.reshape(0)
        rows = sequences if shapes.DIMENSIONS[name][0] == "n" else array.shape[1]
        own_rows = of_bias and name == "bias"  # each example has its own gradient
        if name in unmapped & set(shapes.BROADCAST) and array.shape[1] == 1 and not own_rows:
            return array[0]  # one row for every sequence of every example
        return jnp.broadcast_to(array, (size, rows, *array.shape[2:])).reshape(
            size * rows, *array.shape[2:]
        )

    operands = {name: fold(name) for name in names}
    # One row of the bias became one a sequence, whose gradients are summed here: in float32.
    add_up = of_bias and mapped["bias"].shape[1] != sequences
    if add_up:
        operands["bias"] = operands["bias"].astype(jnp.float32)
    results = primitive.bind(*operands.values(), **params)

    def split(name: str, array: jax.Array) -> jax.Array:
        lead = sequences if name == "bias" else mapped["query"].shape[1]
        array = array.reshape(size, lead, *array.shape[1:])
        if add_up and name == "bias":
            return array.sum(1, keepdims=True).astype(mapped["bias"].dtype)
        return array

    examples = [split(*result) for result in zip(shapes.RESULTS[kind], results, strict=True)]
    return examples, [0] * len(examples)
