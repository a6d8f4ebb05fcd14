"""What the Flax adapters share: Flax's shapes and dropout to those of flash_attention.

Flax itself is imported by jax_baracuda.nnx and jax_baracuda.linen alone.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jax_baracuda._src import validation
from jax_baracuda._src.attention import masked
from jax_baracuda._src.attention.call import Implementation

__all__ = ["Implementation", "attend", "causal_mask", "left_to_flax", "why_not"]

why_not = masked.why_not


def left_to_flax(obstacle: str, implementation: str | None) -> bool:
    """Whether a call goes to Flax's own function; raises if the kernels were insisted on."""
    validation.check_implementation(implementation)
    if obstacle and implementation == "cuda":
        raise NotImplementedError(f"dot_product_attention on CUDA: {obstacle}.")
    return bool(obstacle)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    *,
    is_causal: bool,
    dropout_rng: jax.Array | None,
    dropout_rate: float,
    broadcast_dropout: bool,
    implementation: Implementation,
) -> jax.Array:
    """Attention of [batch..., T, N, D] arrays, with Flax's bias, mask and dropout."""
    seed = None
    if dropout_rate:
        if dropout_rng is None:
            raise ValueError("dropout_rng is None; dropout needs a PRNG key.")
        seed = jax.random.bits(dropout_rng, (2,), jnp.uint32)
    batch = query.shape[:-3]
    for name, array in (("key", key), ("value", value)):
        if array.shape[:-3] != batch:
            raise ValueError(
                f"{name} has batch dimensions {array.shape[:-3]} and query has {batch}."
            )
    flat = [array.reshape(math.prod(batch), *array.shape[-3:]) for array in (query, key, value)]
    out, _ = masked.attend(
        flat[0],
        flat[1],
        flat[2],
        None if bias is None else _one_batch(bias, batch),
        None if mask is None else _one_batch(mask, batch).astype(bool),
        is_causal=is_causal,
        dropout_rate=dropout_rate,
        dropout_seed=seed,
        broadcast_dropout=broadcast_dropout,
        implementation=implementation,
    )
    return out.reshape(*batch, *out.shape[1:])


def causal_mask(mask: jax.Array | None, queries: int, keys: int) -> jax.Array:
    """``mask`` and the rule that query i sees keys j <= i."""
    causal = jnp.tril(jnp.ones((queries, keys), bool))
    return causal if mask is None else mask.astype(bool) & causal


def _one_batch(array: jax.Array, batch: tuple[int, ...]) -> jax.Array:
    """A bias or mask, broadcastable to [batch..., N, T, S], with one batch dimension."""
    array = array.reshape((1,) * (len(batch) + 3 - array.ndim) + array.shape)
    lead, rest = array.shape[:-3], array.shape[-3:]
    if math.prod(lead) == 1:  # one for all: stays small
        return array.reshape(1, *rest)
    return jnp.broadcast_to(array, (*batch, *rest)).reshape(math.prod(batch), *rest)
