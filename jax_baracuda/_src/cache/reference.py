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


def _write(
    store: jax.Array,
    rows: jax.Array,
    slot: jax.Array,
    row: jax.Array,
    layer: jax.Array | None,
    *,
    nhd: bool,
) -> jax.Array:
    """Puts rows [..., H, D] at [layer, slot, row], each [...]; drops what is outside."""
    outer = [slot] if layer is None else [layer, slot]
    if nhd:
        return store.at[*outer, row].set(rows, mode="drop")
    # Every axis before D is indexed, in order: a scatter that transposes nothing.
    outer = [index[..., None] for index in outer]
    heads = jnp.arange(rows.shape[-2])
    return store.at[*outer, heads, row[..., None]].set(rows, mode="drop")


def _layer(layers: jax.Array, shape: tuple[int, ...], store: jax.Array) -> jax.Array | None:
    """The layer of each row, L for one outside; None where the store has no layers."""
    if store.ndim == 4:
        return None
    count = store.shape[0]
    inside = (layers >= 0) & (layers < count)
    layers = jnp.where(inside, layers, count).reshape(-1, *[1] * (len(shape) - 1))
    return jnp.broadcast_to(layers, shape)


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
    layers: jax.Array,
    *,
    nhd: bool,
    interleaved: bool,
    attention_factor: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Writes rows into the pages of their requests.

    Args:
      k_pages: [P, Hkv, page, D], or [P, page, Hkv, D] with ``nhd``; with ``layers`` [L, P, ...].
      v_pages: likewise, with a head dimension of its own.
      key: [T, Hkv, D].
      value: likewise.
      query: [T, Hq, D], or an empty array.
      inv_freq: float32 [R / 2], or an empty array for no rotation.
      batch_indices: int32 [T], the request of each token.
      positions: int32 [T].
      page_indices: int32 [N].
      page_indptr: int32 [B + 1].
      layers: int32 [1] or [T], or an empty array.
      nhd: the layout of the stores.
      interleaved: as in ``rope_reference``.
      attention_factor: as in ``rope_reference``.

    Returns:
      The two stores, and the rotated query or an empty array.
    """

    def rotate(rows: jax.Array) -> jax.Array:
        return _rotate(rows, positions, inv_freq, interleaved, attention_factor)

    rotated, key = rotate(query), rotate(key)
    *_, pages, page_size = k_pages.shape[:-2] if nhd else (*k_pages.shape[:-3], k_pages.shape[-2])
    batch, entries = page_indptr.shape[0] - 1, page_indices.shape[0]
    if batch == 0 or entries == 0:
        return k_pages, v_pages, rotated
    bounds = jnp.clip(page_indptr, 0, entries)
    request = jnp.clip(batch_indices, 0, batch - 1)
    nth = positions // page_size
    page = page_indices[jnp.clip(bounds[request] + nth, 0, entries - 1)]
    kept = (batch_indices == request) & (positions >= 0) & (page >= 0) & (page < pages)
    # Not `bounds[request] + nth < ...`: that sum may pass the end of int32.
    kept &= nth < bounds[request + 1] - bounds[request]
    page, row = jnp.where(kept, page, pages), positions % page_size
    layer = _layer(layers, page.shape, k_pages)
    k_pages = _write(k_pages, key, page, row, layer, nhd=nhd)
    return k_pages, _write(v_pages, value, page, row, layer, nhd=nhd), rotated


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
      k_cache: [B, Hkv, K, D], or [B, K, Hkv, D] with ``nhd``; with ``layers`` [L, B, ...].
      v_cache: likewise, with a head dimension of its own.
      key: [R, Hkv, T, D], or [R, T, Hkv, D] with ``nhd``; those of request r go to cache r % B.
      value: likewise.
      query: [R, Hq, T, D], or [R, T, Hq, D] with ``nhd``, or an empty array.
      inv_freq: float32 [R / 2], or an empty array for no rotation.
      lengths: int32 [R], where the first row goes.
      layers: int32 [1] or [R], or an empty array.
      nhd: the layout of caches and rows.
      interleaved: as in ``rope_reference``.
      attention_factor: as in ``rope_reference``.

    Returns:
      The two caches, and the rotated query or an empty array.
    """

    def turn(rows: jax.Array) -> jax.Array:
        """To or from [R, T, H, D]."""
        return rows if nhd or rows.shape == (0,) else rows.swapaxes(1, 2)

    def rotate(rows: jax.Array) -> jax.Array:
        return _rotate(rows, positions, inv_freq, interleaved, attention_factor)

    key, value = turn(key), turn(value)
    requests, tokens = key.shape[:2]
    positions = lengths[:, None] + jnp.arange(tokens, dtype=jnp.int32)
    rotated, key = turn(rotate(turn(query))), rotate(key)
    *_, batch, capacity = k_cache.shape[:-2] if nhd else (*k_cache.shape[:-3], k_cache.shape[-2])
    if batch == 0:
        return k_cache, v_cache, rotated
    kept = (positions >= 0) & (positions < capacity)
    row = jnp.where(kept, positions, capacity)
    cache = jnp.arange(requests, dtype=jnp.int32)[:, None] % batch
    cache = jnp.broadcast_to(cache, row.shape)
    layer = _layer(layers, row.shape, k_cache)
    k_cache = _write(k_cache, key, cache, row, layer, nhd=nhd)
    return k_cache, _write(v_cache, value, cache, row, layer, nhd=nhd), rotated
