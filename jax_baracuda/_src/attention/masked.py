"""What jax.nn's and Flax's attention share: bias and mask, and a diagonal from the first row.

The forms in which flash_attention takes a mask are a boolean bias, -inf in a bias, and segment ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_baracuda._src import validation
from jax_baracuda._src.attention import call, shapes
from jax_baracuda._src.attention.call import Implementation
from jax_baracuda._src.validation import HasShape


def why_not(query: HasShape, key: HasShape, value: HasShape, bias: HasShape | None = None) -> str:
    """What about the arrays no kernel takes; empty if there is nothing."""
    dtype = validation.dtype_name(query)
    if dtype not in validation.DTYPES:
        return f"query has dtype {dtype}; supported are {', '.join(validation.DTYPES)}"
    for name, array in (("query", query), ("value", value)):
        if array.shape[-1] > validation.MAX_HEAD_DIM:
            return (
                f"{name} has head dimension {array.shape[-1]}; supported are 1 to "
                f"{validation.MAX_HEAD_DIM}"
            )
    for name, array in (("query", query), ("key", key)):
        if 0 in array.shape:
            return f"{name} has shape {array.shape}; it must have elements"
    if bias is not None and jnp.issubdtype(bias.dtype, jnp.complexfloating):
        return f"bias has dtype {bias.dtype}; supported are real numbers"
    return ""


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    query_seq_lengths: jax.Array | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_seed: jax.Array | None = None,
    broadcast_dropout: bool = False,
    implementation: Implementation = None,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """flash_attention with the diagonal of jax.nn: the output and the log-sum-exp.

    ``bias`` and boolean ``mask`` are broadcastable to [B, Hq, S, K]. With ``broadcast_dropout`` all
    sequences and heads drop the same weights. ``options`` are static ones of flash_attention.
    """
    given = call.arrays(
        sinks=None,
        alibi_slopes=None,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        **_masking(bias, mask, query.shape[:2], key.shape[:2]),
    )
    shape = shapes.check_operands(query, key, value, **given)
    checked = shapes.check_options(
        shape.head_dim, dropout_rate=dropout_rate, top_left=True, **options
    )
    seed = call.check_seed(dropout_seed, checked["dropout_rate"])
    if seed is not None and broadcast_dropout:
        seed = jnp.broadcast_to(
            jnp.concatenate([seed, jnp.zeros_like(seed)]), (shape.batch, shape.q_heads, 4)
        )
    return call.attend(shape, checked, query, key, value, given, seed, implementation)


def by_segments(bias: HasShape | None, mask: HasShape | None) -> bool:
    """Whether a mask is of keys alone, beside a bias, which segment ids leave as small as it is."""
    return bias is not None and mask is not None and tuple(mask.shape[1:3]) == (1, 1)


def _masking(
    bias: jax.Array | None, mask: jax.Array | None, rows: Sequence[int], keys: Sequence[int]
) -> dict[str, jax.Array | None]:
    """Bias and mask as flash_attention takes them: arguments by name."""
    ids: list[jax.Array | None] = [None, None]
    if bias is not None and validation.dtype_name(bias) not in validation.DTYPES:
        bias = bias.astype(jnp.float32)  # booleans, too, are numbers in a bias
    if bias is None:
        bias = mask
    elif mask is not None and by_segments(bias, mask):
        ids[0] = jnp.ones(rows, jnp.int32)
        ids[1] = jnp.broadcast_to(mask[:, 0, 0], keys).astype(jnp.int32)
    elif mask is not None:
        bias = jnp.where(mask, bias, -jnp.inf)
    if bias is not None:
        bias = jnp.broadcast_to(bias, (*bias.shape[:3], keys[1]))
    return dict(bias=bias, query_segment_ids=ids[0], key_value_segment_ids=ids[1])
