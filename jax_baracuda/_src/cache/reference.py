"""Appends and rotary embeddings in plain jnp: the lowering of every platform but CUDA.

Imports none of ours. What is dropped gets an index past the end, which a scatter skips.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def rope_reference(
    x: jax.Array,
    positions: jax.Array,
    inv_freq: jax.Array,
    *,
    interleaved: bool,
    attention_factor: float,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Rotates pairs of columns of x by positions * inv_freq.

    Args:
      x: [..., H, D].
      positions: int32 [...].
      inv_freq: float32 [R / 2]; columns from R on pass through.
      interleaved: pairs are (2 i, 2 i + 1) instead of (i, i + R / 2).
      attention_factor: factor on cosines and sines.
      dtype: of cosines, sines and products. The angles are float32 whatever it is, as a float32
        kernel has them.

    Returns:
      Like x.
    """
    width = 2 * inv_freq.shape[0]
    angle = positions.astype(jnp.float32)[..., None, None] * inv_freq
    cos = jnp.cos(angle.astype(dtype)) * attention_factor
    sin = jnp.sin(angle.astype(dtype)) * attention_factor
    rotated = x[..., :width].astype(dtype)
    pairs = (*rotated.shape[:-1], width // 2, 2)
    if interleaved:
        a, b = jnp.moveaxis(rotated.reshape(pairs), -1, 0)
    else:
        a, b = jnp.split(rotated, 2, axis=-1)
    a, b = a * cos - b * sin, b * cos + a * sin
    if interleaved:
        rotated = jnp.stack([a, b], axis=-1).reshape(rotated.shape)
    else:
        rotated = jnp.concatenate([a, b], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), x[..., width:]], axis=-1)


def _rotate(
    rows: jax.Array,
    positions: jax.Array,
    inv_freq: jax.Array,
    interleaved: bool,
    attention_factor: float,
) -> jax.Array:
    """rope_reference, or the rows as they are where there is no rotation or no array."""
    if inv_freq.shape == (0,) or rows.shape == (0,):
        return rows
    return rope_reference(
        rows, positions, inv_freq, interleaved=interleaved, attention_factor=attention_factor
    )


def paged_append_reference(
    k_pages: jax.Array,
    v_pages: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query: jax.Array,
    inv_freq: jax.Array,
    batch_indices: jax.Array,
    positions: jax.Array,
    page_indices: jax.Array,
    page_indptr: jax.Array,
    *,
    nhd: bool,
    interleaved: bool,
    attention_factor: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Writes rows into the pages of their requests.

    Args:
      k_pages: [P, Hkv, page, D], or [P, page, Hkv, D] with ``nhd``.
      v_pages: likewise, with a head dimension of its own.
      key: [T, Hkv, D].
      value: likewise.
      query: [T, Hq, D], or an empty array.
      inv_freq: float32 [R / 2], or an empty array for no rotation.
      batch_indices: int32 [T], the request of each token.
      positions: int32 [T].
      page_indices: int32 [N].
      page_indptr: int32 [B + 1].
      nhd: the layout of the stores.
      interleaved: as in ``rope_reference``.
      attention_factor: as in ``rope_reference``.

    Returns:
      The two stores, and the rotated query or an empty array.
    """

    def rotate(rows: jax.Array) -> jax.Array:
        return _rotate(rows, positions, inv_freq, interleaved, attention_factor)

    rotated, key = rotate(query), rotate(key)
    pages, page_size = k_pages.shape[0], k_pages.shape[1 if nhd else 2]
    batch, entries = page_indptr.shape[0] - 1, page_indices.shape[0]
    if batch == 0 or entries == 0:
        return k_pages, v_pages, rotated
    bounds = jnp.clip(page_indptr, 0, entries)
    request = jnp.clip(batch_indices, 0, batch - 1)
    nth = positions // page_size
    entry = bounds[request] + nth
    page = page_indices[jnp.clip(entry, 0, entries - 1)]
    kept = (batch_indices == request) & (positions >= 0) & (page >= 0) & (page < pages)
    # Not `entry < bounds[request + 1]`: the sum may pass the end of int32.
    kept &= nth < bounds[request + 1] - bounds[request]
    page, row = jnp.where(kept, page, pages), positions % page_size

    def write(store: jax.Array, rows: jax.Array) -> jax.Array:
        if nhd:
            return store.at[page, row].set(rows, mode="drop")
        # Every axis before D is indexed, in order: a scatter that transposes nothing.
        head = jnp.arange(rows.shape[1])[None, :]
        return store.at[page[:, None], head, row[:, None]].set(rows, mode="drop")

    return write(k_pages, key), write(v_pages, value), rotated


def cache_append_reference(
    k_cache: jax.Array,
    v_cache: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query: jax.Array,
    inv_freq: jax.Array,
    lengths: jax.Array,
    layers: jax.Array,
    *,
    nhd: bool,
    interleaved: bool,
    attention_factor: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Writes rows behind those that each request has.

    Args:
      k_cache: [L, B, Hkv, K, D], or [L, B, K, Hkv, D] with ``nhd``.
      v_cache: likewise, with a head dimension of its own.
      key: [R, Hkv, T, D], or [R, T, Hkv, D] with ``nhd``; row r is request r % B.
      value: likewise.
      query: [R, Hq, T, D], or [R, T, Hq, D] with ``nhd``, or an empty array.
      inv_freq: float32 [R / 2], or an empty array for no rotation.
      lengths: int32 [R], where the first row goes.
      layers: int32 [1] or [R], which layer.
      nhd: the layout of caches and rows.
      interleaved: as in ``rope_reference``.
      attention_factor: as in ``rope_reference``.

    Returns:
      The two caches, and the rotated query or an empty array.
    """
    layer_count, batch = k_cache.shape[:2]
    rows, tokens = key.shape[0], key.shape[1 if nhd else 2]
    capacity = k_cache.shape[2 if nhd else 3]
    position = lengths[:, None] + jnp.arange(tokens, dtype=jnp.int32)  # [R, T]

    def rotate(array: jax.Array) -> jax.Array:
        turned = array if nhd or array.shape == (0,) else array.swapaxes(1, 2)
        turned = _rotate(turned, position, inv_freq, interleaved, attention_factor)
        return turned if nhd or array.shape == (0,) else turned.swapaxes(1, 2)

    rotated, key = rotate(query), rotate(key)
    if batch == 0:
        return k_cache, v_cache, rotated
    kept = (position >= 0) & (position < capacity)
    kept &= ((layers >= 0) & (layers < layer_count))[:, None]
    position = jnp.where(kept, position, capacity)
    layer = jnp.broadcast_to(jnp.clip(layers, 0, layer_count - 1), (rows,))[:, None]
    request = (jnp.arange(rows, dtype=jnp.int32) % batch)[:, None]

    def write(cache: jax.Array, new: jax.Array) -> jax.Array:
        if nhd:
            return cache.at[layer, request, position].set(new, mode="drop")
        head = jnp.arange(new.shape[1])[:, None]
        at = (layer[..., None], request[..., None], head, position[:, None])
        return cache.at[at].set(new, mode="drop")

    return write(k_cache, key), write(v_cache, value), rotated
