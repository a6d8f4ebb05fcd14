"""The operations that a kernel can serve. The model calls these and nothing below them."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

import jax_baracuda

from .config import SequenceAttention

DecodeAttention = Literal["flash_decode", "jax_nn"]


# Tables of so many rows or fewer get their gradient by a product.
_SMALL_TABLE = 1024


def embed(table: Array, tokens: Array) -> Array:
    """Rows of ``table`` [V, E]: tokens [...] -> [..., E].

    Of jnp.take's gradient XLA makes additions to V rows in memory, one a token: bytes are so few
    that tokens wait for each other there (17 ms for 32768 of them, where a product takes 0.1 ms).
    """
    if table.shape[0] > _SMALL_TABLE:
        return table[tokens]

    def backward(tokens: Array, gradient: Array) -> tuple[Array, None]:
        chosen = jax.nn.one_hot(tokens, table.shape[0], dtype=gradient.dtype)
        return jnp.einsum("...v,...e->ve", chosen, gradient), None

    rows = jax.custom_vjp(lambda table, tokens: table[tokens])
    rows.defvjp(lambda table, tokens: (table[tokens], tokens), backward)
    return rows(table, tokens)


def apply_rope(x: Array, positions: Array, *, theta: float) -> Array:
    """Rotates the pairs ``(x[i], x[i + D/2])`` of ``x`` [..., H, D] by ``positions`` [...].

    Rotary position embedding in the half-split order (Su et al., 2021, arXiv:2104.09864).
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def causal_attention(
    query: Array, key: Array, value: Array, implementation: SequenceAttention
) -> Array:
    """Attention of whole sequences: query [B, S, Hq, D], key and value [B, S, Hkv, D]."""
    if implementation == "flash_attention":
        return jax_baracuda.flash_attention(query, key, value, is_causal=True)
    cudnn = "cudnn" if implementation == "jax_cudnn" else None
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation=cudnn)


def decode_attention(
    query: Array, key: Array, value: Array, kv_lengths: Array, implementation: DecodeAttention
) -> Array:
    """Attention of one query a request: query [B, Hq, D], caches [B, Hkv, K, D], lengths [B]."""
    if implementation == "flash_decode":
        return jax_baracuda.flash_decode(query, key, value, kv_lengths)
    return jax.nn.dot_product_attention(
        query[:, None], key.swapaxes(1, 2), value.swapaxes(1, 2), key_value_seq_lengths=kv_lengths
    )[:, 0]
