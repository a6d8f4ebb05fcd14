"""The key/value cache: [layers, B, Hkv, K, D], updated in place under jit."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .config import ModelConfig


class KVCache(NamedTuple):
    """Keys and values of every layer. Rows past a request's length are never read."""

    keys: Array
    values: Array


def empty_cache(config: ModelConfig, batch: int, length: int) -> KVCache:
    """A cache for ``batch`` requests of up to ``length`` tokens, in the dtype of the arithmetic."""
    heads, dim = config.num_key_value_heads, config.head_dim
    shape = (config.num_hidden_layers, batch, heads, length, dim)
    return KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


def write_prompt(cache: KVCache, layer: Array, key: Array, value: Array) -> KVCache:
    """Writes rows 0..S-1 of one layer: key and value [B, S, Hkv, D]."""

    def write(rows: Array, new: Array) -> Array:
        new = new.swapaxes(1, 2)[None].astype(rows.dtype)
        return jax.lax.dynamic_update_slice(rows, new, (layer, 0, 0, 0, 0))

    return KVCache(write(cache.keys, key), write(cache.values, value))


def append_token(
    cache: KVCache, layer: Array, positions: Array, key: Array, value: Array
) -> KVCache:
    """Writes one row of one layer: request b's at ``positions[b]``. key and value [B, Hkv, D].

    A position past the end of the cache writes nothing.
    """
    batch, heads, _ = key.shape
    # Every axis before D is indexed, in order: a scatter over them needs no transpose of the cache.
    where = (layer, jnp.arange(batch)[:, None], jnp.arange(heads)[None, :], positions[:, None])

    def write(rows: Array, new: Array) -> Array:
        return rows.at[where].set(new.astype(rows.dtype), mode="drop", unique_indices=True)

    return KVCache(write(cache.keys, key), write(cache.values, value))


def read_layer(cache: KVCache, layer: Array) -> tuple[Array, Array]:
    """One layer's keys and values, [B, Hkv, K, D] each."""
    keys, values = (jax.lax.dynamic_index_in_dim(rows, layer, keepdims=False) for rows in cache)
    return keys, values
