"""flash_decode in plain jnp: the lowering of every platform but CUDA, and the tests' oracle."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def flash_decode_reference(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    kv_lengths: jax.Array,
    sinks: jax.Array,
    alibi_slopes: jax.Array,
    *,
    nhd: bool,
    scale: float,
    window_left: int,
    sink_tokens: int,
    logits_soft_cap: float,
    dtype: DTypeLike = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Attention of one query row a request over its key/value cache.

    Args:
      query: [B, Hq, D].
      key: [B, Hkv, K, D], or [B, K, Hkv, D] with ``nhd``.
      value: like ``key``.
      kv_lengths: int32 [B], or an empty array when every row of the cache is in use.
      sinks: [B, Hq] or [1, Hq] extra logits in the softmax denominator, or an empty array.
      alibi_slopes: [B, Hq] or [1, Hq], or an empty array.
      nhd: the layout of the caches.
      scale: factor on the query-key products.
      window_left: how many keys before the query's own row are visible; -1 for all.
      sink_tokens: how many of the first keys are visible whatever the window.
      logits_soft_cap: cap * tanh(logits / cap) is applied; 0 for none.
      dtype: the precision of the two products. The softmax runs in float32 or better. With float64
        (and float64 inputs, under jax_enable_x64) this is an oracle. A 16-bit dtype rounds as a
        16-bit kernel does: products of 16-bit numbers, probabilities among them, are summed in
        float32.

    Returns:
      out: [B, Hq, D] in the dtype of ``query``.
      lse: [B, Hq], natural log-sum-exp of the logits; float32, or float64 if ``dtype`` is that.
    """
    batch, capacity = query.shape[0], key.shape[1 if nhd else 2]
    length = jnp.full((1,), capacity, jnp.int32)
    if kv_lengths.size or not batch:
        length = jnp.clip(kv_lengths, 0, capacity).astype(jnp.int32)
    out, lse = attend(
        query,
        key,
        value,
        length,
        jnp.zeros((1,), jnp.int32),
        alibi_slopes,
        nhd=nhd,
        scale=scale,
        window_left=window_left,
        sink_tokens=sink_tokens,
        logits_soft_cap=logits_soft_cap,
        dtype=dtype,
    )
    out, lse = add_sinks(out, lse, sinks)
    return out.astype(query.dtype), lse


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array,
    starts: jax.Array,
    alibi_slopes: jax.Array,
    *,
    nhd: bool,
    scale: float,
    window_left: int,
    sink_tokens: int,
    logits_soft_cap: float,
    dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array]:
    """Attention over a part of each request's keys: the cache is rows ``starts`` and on.

    Args:
      query: as in ``flash_decode_reference``, as is what is not named here.
      key: rows ``starts[b]`` to ``starts[b] + K`` of the keys of request b.
      value: likewise.
      lengths: int32 [B] or [1], how many keys a request has, in this part and outside of it.
      starts: int32 [B] or [1].
      alibi_slopes: as above.
      nhd: as above.
      scale: as above.
      window_left: as above.
      sink_tokens: as above.
      logits_soft_cap: as above.
      dtype: as above.

    Returns:
      out: [B, Hq, D] in float32 or better, and lse: [B, Hq].
    """
    batch, q_heads, head_dim = query.shape
    kv_heads, capacity = (key.shape[2], key.shape[1]) if nhd else key.shape[1:3]
    grouped = (batch, kv_heads, q_heads // kv_heads)
    wide = jnp.promote_types(dtype, jnp.float32)

    def product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(
            spec,
            a.astype(dtype),
            b.astype(dtype),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=wide,
        )

    # Which keys the query of each request sees: [B or 1, K]. The query sits on the last key.
    position = starts[:, None] + jnp.arange(capacity, dtype=jnp.int32)[None, :]
    distance = lengths[:, None] - 1 - position
    visible = distance >= 0
    if window_left >= 0:
        visible &= (distance <= window_left) | (position < sink_tokens)

    # A row that is not seen may hold anything, NaN included, and 0 * NaN is NaN: it becomes 0.
    seen = visible[:, :, None, None] if nhd else visible[:, None, :, None]
    key = jnp.where(seen, key, 0)
    value = jnp.where(seen, value, 0)

    cache = "bkhd" if nhd else "bhkd"
    logits = scale * product(f"bhgd,{cache}->bhgk", query.reshape(*grouped, head_dim), key)
    if logits_soft_cap:
        logits = logits_soft_cap * jnp.tanh(logits / logits_soft_cap)
    if alibi_slopes.size:
        slopes = alibi_slopes.astype(wide).reshape(alibi_slopes.shape[0], *grouped[1:], 1)
        logits -= slopes * distance.astype(wide)[:, None, None, :]
    logits = jnp.where(visible[:, None, None, :], logits, -jnp.inf)

    # A softmax whose empty rows give 0 and -inf instead of NaN, in value and in gradient.
    top = jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0, top))
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    empty = total == 0
    total = jnp.where(empty, 1, total)
    lse = jnp.where(empty, -jnp.inf, top + jnp.log(total))
    out = product(f"bhgk,{cache}->bhgd", weights, value) / total
    return out.reshape(query.shape), lse.reshape(batch, q_heads)


def add_sinks(out: jax.Array, lse: jax.Array, sinks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Counts the extra logits, if there are any, of requests that see a key."""
    if not sinks.size:
        return out, lse
    empty = lse == -jnp.inf
    own = jnp.where(empty, 0, lse)
    total = jnp.logaddexp(own, sinks.astype(lse.dtype))
    return out * jnp.exp(own - total)[..., None], jnp.where(empty, -jnp.inf, total)
