"""flash_decode, the public function."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_baracuda._src import compat
from jax_baracuda._src.decode import partition, shapes
from jax_baracuda._src.decode.primitive import flash_decode_p, reference_call


def flash_decode(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    kv_lengths: ArrayLike | None = None,
    *,
    kv_layout: Literal["HND", "NHD"] = "HND",
    scale: float | None = None,
    local_window_size: int | Sequence[int] | None = None,
    sink_tokens: int = 0,
    sinks: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    logits_soft_cap: float | None = None,
    num_splits: int | None = None,
    return_lse: bool = False,
    implementation: Literal["cuda", "reference"] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Attention of one query token a request over its key/value cache."""
    shapes.check_implementation(implementation)
    query, key, value = (_array(n, a) for n, a in (("query", query), ("key", key), ("value", value)))
    lengths, sinks, slopes = (
        None if a is None else _array(n, a)
        for n, a in (("kv_lengths", kv_lengths), ("sinks", sinks), ("alibi_slopes", alibi_slopes))
    )
    shape = shapes.check_operands(query, key, value, lengths, sinks, slopes, kv_layout=kv_layout)
    options: dict[str, Any] = dict(
        nhd=shapes.check_layout(kv_layout),
        scale=shapes.check_scale(scale, shape.head_dim),
        window_left=shapes.check_window(local_window_size),
        sink_tokens=shapes.check_sink_tokens(sink_tokens),
        logits_soft_cap=shapes.check_soft_cap(logits_soft_cap),
        num_splits=shapes.check_num_splits(num_splits),
    )
    operands = compat.match_varying(
        query, key, value, _lengths(lengths, shape.capacity), _per_head(sinks), _per_head(slopes)
    )
    if implementation == "reference":
        call = functools.partial(reference_call, **options)
    else:
        call = functools.partial(flash_decode_p.bind, **options, insist=implementation == "cuda")
    out, lse = partition.in_auto_mode(call, operands, nhd=options["nhd"])
    return (out, lse) if return_lse else out


def _array(name: str, value: Any) -> jax.Array:
    try:
        return jnp.asarray(value)
    except TypeError as error:
        raise ValueError(f"{name} is a {type(value).__name__}; it must be an array.") from error


def _lengths(lengths: jax.Array | None, capacity: int) -> jax.Array:
    """int32 [B], or empty."""
    if lengths is None:
        return jnp.zeros((0,), jnp.int32)
    if lengths.dtype == jnp.int32:
        return lengths
    # A wider or unsigned integer is clamped before it is narrowed, so that it cannot wrap.
    return jnp.clip(lengths, 0, capacity).astype(jnp.int32)


def _per_head(operand: jax.Array | None) -> jax.Array:
    """float32 [1 or B, Hq], or empty."""
    if operand is None:
        return jnp.zeros((0,), jnp.float32)
    operand = operand.astype(jnp.float32)
    return operand[None] if operand.ndim == 1 else operand
