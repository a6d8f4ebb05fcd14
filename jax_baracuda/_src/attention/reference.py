"""flash_attention in plain jnp: the lowering of every platform but CUDA, and the tests' oracle.

Packed sequences (varlen) are one dense array whose rows know their sequence and their place in it;
a dense batch is the case in which a row's place is its index.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_baracuda._src.attention import dropout


class Places(NamedTuple):
    """Where rows lie: int32 arrays that broadcast to [B, L]."""

    sequence: jax.Array  # which of the sequences, -1 outside of them all
    place: jax.Array  # row within the sequence
    size: jax.Array  # rows of the sequence


def flash_attention_reference(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array,
    sinks: jax.Array,
    alibi_slopes: jax.Array,
    query_lengths: jax.Array,
    kv_lengths: jax.Array,
    query_segment_ids: jax.Array,
    kv_segment_ids: jax.Array,
    cu_seqlens_q: jax.Array,
    cu_seqlens_k: jax.Array,
    dropout_seed: jax.Array,
    *,
    scale: float,
    causal: bool,
    top_left: bool,
    window_left: int,
    window_right: int,
    sink_tokens: int,
    logits_soft_cap: float,
    dropout_rate: float,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dtype: DTypeLike = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Attention with every option. An optional operand that is missing is an array of shape (0,).

    B is the batch and NB = B the number of sequences; with ``cu_seqlens_*`` B is the number of
    packs, each of N sequences end to end, and NB = B * N.

    Args:
      query: [B, S, Hq, D].
      key: [B, K, Hkv, D].
      value: [B, K, Hkv, Dv].
      bias: [1 or NB, 1 or Hq, 1 or S, K], added to the logits, or bool: False hides. In packs its
        last dimensions are ``max_seqlen_q`` (or 1) and ``max_seqlen_k``.
      sinks: [1 or NB, Hq], extra logits in the softmax denominator.
      alibi_slopes: [1 or NB, Hq].
      query_lengths: int32 [NB]: query rows from there on are masked.
      kv_lengths: int32 [NB]: keys from there on are hidden.
      query_segment_ids: int32 [B, S]: only keys of the same segment are visible.
      kv_segment_ids: int32 [B, K].
      cu_seqlens_q: int32 [B, N + 1], where the sequences of a pack start and end.
      cu_seqlens_k: int32 [B, N + 1].
      dropout_seed: uint32 [NB, Hq, 4], the words (seed0, seed1, head, batch).
      scale: factor on the query-key products.
      causal: keys past the diagonal are hidden.
      top_left: the diagonal starts in the first row and key; otherwise it ends in the last ones.
      window_left: how many keys before the diagonal are visible; -1 for all.
      window_right: how many keys after the diagonal are visible; -1 for all.
      sink_tokens: how many of the first keys are visible whatever the window.
      logits_soft_cap: cap * tanh(logits / cap) is applied before bias and slopes; 0 for none.
      dropout_rate: the probability with which a weight is dropped.
      max_seqlen_q: of the kernel's grid; not used here.
      max_seqlen_k: likewise.
      dtype: the precision of the products. The softmax runs in float32 or better. With float64 (and
        float64 inputs, under jax_enable_x64) this is an oracle. A 16-bit dtype rounds as a 16-bit
        kernel does: products of 16-bit numbers, probabilities among them, are summed in float32.

    Returns:
      out: [B, S, Hq, Dv] in the dtype of ``query``, 0 in rows that see no key.
      lse: [B, Hq, S], natural log-sum-exp of the logits and sinks, -inf in rows that see no key;
        float32, or float64 if ``dtype`` is that.
    """
    del max_seqlen_q, max_seqlen_k
    batch, rows, q_heads, head_dim = query.shape
    keys, kv_heads = key.shape[1:3]
    group = q_heads // kv_heads
    wide = jnp.promote_types(dtype, jnp.float32)
    q_places, k_places = _places(batch, rows, cu_seqlens_q), _places(batch, keys, cu_seqlens_k)
    packed = _is_given(cu_seqlens_q)

    def product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(
            spec,
            a.astype(dtype),
            b.astype(dtype),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=wide,
        )

    def by_row(operand: jax.Array, places: Places = q_places) -> jax.Array:
        """[1 or NB, ...] -> [B or 1, L or 1, ...]."""
        if packed and operand.shape[0] != 1:
            return operand[places.sequence]
        return operand[:, None]

    def by_head(operand: jax.Array) -> jax.Array:
        """[1 or NB, Hq, ...] -> [B or 1, Hkv, group, S or 1, 1, ...]."""
        array = by_row(operand)
        array = array.reshape(*array.shape[:2], kv_heads, group, 1, *array.shape[3:])
        return jnp.moveaxis(array, 1, 3)

    # Every array from here on is [B, Hkv, group, S, K], or 1 where it does not depend on one.
    row, column = _as_rows(q_places), _as_columns(k_places)
    distance = row.place - column.place
    if not top_left:
        distance += column.size - row.size
    visible = (row.sequence == column.sequence) & (row.sequence >= 0)
    if causal:
        visible &= distance >= 0
    if window_left >= 0:
        visible &= (distance <= window_left) | (column.place < sink_tokens)
    if window_right >= 0:
        visible &= (-distance <= window_right) | (column.place < sink_tokens)
    if _is_given(query_lengths):
        visible &= row.place < by_row(query_lengths)[:, None, None, :, None]
    if _is_given(kv_lengths):
        visible &= column.place < by_row(kv_lengths, k_places)[:, None, None, None, :]
    if _is_given(query_segment_ids):
        own = query_segment_ids[:, None, None, :, None]
        visible &= own == kv_segment_ids[:, None, None, None, :]
    offset = jnp.zeros((), wide)
    if _is_given(bias):
        at_logits = _bias_at(bias, row, column) if packed else bias
        heads = (1, 1) if bias.shape[1] == 1 else (kv_heads, group)
        at_logits = at_logits.reshape(at_logits.shape[0], *heads, *at_logits.shape[2:])
        shown = at_logits if bias.dtype == jnp.bool_ else at_logits != -jnp.inf
        visible &= shown
        if bias.dtype != jnp.bool_:
            offset = jnp.where(shown, at_logits.astype(wide), 0)
    visible = jnp.broadcast_to(visible, (*visible.shape[:3], rows, keys))

    # A row that is not seen may hold anything, NaN included, and 0 * NaN is NaN: it becomes 0.
    seen = visible.any((1, 2))
    query = jnp.where(seen.any(2)[:, :, None, None], query, 0)
    key, value = (jnp.where(seen.any(1)[:, :, None, None], array, 0) for array in (key, value))

    split = query.reshape(batch, rows, kv_heads, group, head_dim)
    logits = scale * product("bshgd,bkhd->bhgsk", split, key)
    if logits_soft_cap:
        logits = logits_soft_cap * jnp.tanh(logits / logits_soft_cap)
    logits += offset
    if _is_given(alibi_slopes):
        logits -= by_head(alibi_slopes.astype(wide)) * jnp.abs(distance).astype(wide)
    logits = jnp.where(visible, logits, -jnp.inf)

    # A softmax whose empty rows give 0 and -inf instead of NaN, in value and in gradient.
    top = jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf)
    if _is_given(sinks):
        top = jnp.maximum(top, by_head(sinks.astype(wide)))
    top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0, top))
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if _is_given(sinks):
        extra = jnp.exp(by_head(sinks.astype(wide)) - top)
        total += jnp.where(visible.any(-1, keepdims=True), extra, 0)
    empty = total == 0
    total = jnp.where(empty, 1, total)
    lse = jnp.where(empty, -jnp.inf, top + jnp.log(total))
    if dropout_rate:
        keep = dropout.keep_mask(by_head(dropout_seed), row.place, column.place, dropout_rate)
        weights = jnp.where(keep, weights, 0)
        total *= 1 - dropout_rate
    out = product("bhgsk,bkhe->bshge", weights, value)
    out = jnp.where(jnp.moveaxis(empty, 3, 1), 0, out / jnp.moveaxis(total, 3, 1))
    out = out.reshape(batch, rows, q_heads, value.shape[3]).astype(query.dtype)
    return out, lse.reshape(batch, q_heads, rows)


def _is_given(operand: jax.Array) -> bool:
    return operand.shape != (0,)


def _places(batch: int, length: int, cu_seqlens: jax.Array) -> Places:
    """The places of the rows of a batch, or of packs with these ``cu_seqlens``."""
    row = jnp.arange(length, dtype=jnp.int32)[None, :]
    if not _is_given(cu_seqlens):
        sequence = jnp.arange(batch, dtype=jnp.int32)[:, None]
        return Places(sequence, row, jnp.full((1, 1), length, jnp.int32))
    count = cu_seqlens.shape[1] - 1
    bounds = jnp.clip(jax.lax.cummax(cu_seqlens, axis=1), 0, length)
    found = jnp.sum(row[:, :, None] >= bounds[:, None, :], axis=-1, dtype=jnp.int32) - 1
    inside = (found >= 0) & (found < count)
    found = jnp.clip(found, 0, count - 1)
    start = jnp.take_along_axis(bounds, found, axis=1)
    end = jnp.take_along_axis(bounds, found + 1, axis=1)
    first = count * jnp.arange(batch, dtype=jnp.int32)[:, None]
    return Places(jnp.where(inside, first + found, -1), row - start, end - start)


def _as_rows(places: Places) -> Places:
    """[B, S] -> [B, 1, 1, S, 1]."""
    return Places(*(array[:, None, None, :, None] for array in places))


def _as_columns(places: Places) -> Places:
    """[B, K] -> [B, 1, 1, 1, K]."""
    return Places(*(array[:, None, None, None, :] for array in places))


def _bias_at(bias: jax.Array, row: Places, column: Places) -> jax.Array:
    """The bias of packed sequences at every logit: [B, 1 or Hq, S, K]."""

    def at(index: jax.Array, axis: int) -> jax.Array:
        return jnp.clip(index[:, 0], 0, bias.shape[axis] - 1)

    heads = jnp.arange(bias.shape[1])[:, None, None]
    return bias[at(row.sequence, 0), heads, at(row.place, 2), at(column.place, 3)]
