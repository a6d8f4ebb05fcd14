"""paged_decode and paged_prefill in plain jnp: the lowering of every platform but CUDA.

They are what decode and attention over contiguous keys are, of pages that were gathered: memory
grows with the entries of the page table, not with requests times the longest of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_baracuda._src.attention.reference import flash_attention_reference
from jax_baracuda._src.decode import reference as decode
from jax_baracuda._src.paged import table

Results = tuple[jax.Array, jax.Array]


def paged_decode_reference(
    query: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_indices: jax.Array,
    page_indptr: jax.Array,
    last_page_len: jax.Array,
    sinks: jax.Array,
    alibi_slopes: jax.Array,
    *,
    nhd: bool,
    scale: float,
    window_left: int,
    sink_tokens: int,
    logits_soft_cap: float,
    dtype: DTypeLike = jnp.float32,
) -> Results:
    """Attention to each page by itself, merged by request.

    Args:
      query: [B, Hq, D].
      k_pages: [P, Hkv, page, D], or [P, page, Hkv, D] with ``nhd``.
      v_pages: like ``k_pages``.
      page_indices: int32 [N].
      page_indptr: int32 [B + 1].
      last_page_len: int32 [B].
      sinks: [B, Hq] or [1, Hq] extra logits in the softmax denominator, or an empty array.
      alibi_slopes: [B, Hq] or [1, Hq], or an empty array.
      nhd: the layout of the stores.
      scale: as in ``flash_decode_reference``, as is what is not named here.
      window_left: as there.
      sink_tokens: as there.
      logits_soft_cap: as there.
      dtype: as there.

    Returns:
      out: [B, Hq, D] in the dtype of ``query``, and lse: [B, Hq].
    """
    batch, pages, entries = query.shape[0], k_pages.shape[0], page_indices.shape[0]
    if _is_none(batch, pages, entries):
        return _nothing(query, dtype)
    page_size = k_pages.shape[1 if nhd else 2]
    requests = table.read(page_indices, page_indptr, last_page_len, page_size)
    owner, nth = table.deal(requests.pages, entries)
    owned = owner < batch
    owner = jnp.minimum(owner, batch - 1)
    page = table.pages_at(page_indices, requests.first[owner] + nth, pages)
    out, lse = decode.attend(
        query[owner],
        k_pages[page],
        v_pages[page],
        jnp.where(owned, requests.lengths[owner], 0),
        nth * page_size,
        alibi_slopes[owner] if alibi_slopes.shape[0] == batch else alibi_slopes,
        nhd=nhd,
        scale=scale,
        window_left=window_left,
        sink_tokens=sink_tokens,
        logits_soft_cap=logits_soft_cap,
        dtype=dtype,
    )
    out, lse = _merge(out, lse, owner, batch)
    out, lse = decode.add_sinks(out, lse, sinks)
    return out.astype(query.dtype), lse


def _merge(out: jax.Array, lse: jax.Array, owner: jax.Array, batch: int) -> Results:
    """The states [N, Hq, ...] of parts of a request become one: [B, Hq, ...]."""
    top = jax.ops.segment_max(lse, owner, batch)
    top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0, top))
    weights = jnp.exp(lse - top[owner])
    total = jax.ops.segment_sum(weights, owner, batch)
    out = jax.ops.segment_sum(weights[..., None] * out, owner, batch)
    empty = total == 0
    total = jnp.where(empty, 1, total)
    return out / total[..., None], jnp.where(empty, -jnp.inf, top + jnp.log(total))


def paged_prefill_reference(
    query: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    qo_indptr: jax.Array,
    page_indices: jax.Array,
    page_indptr: jax.Array,
    last_page_len: jax.Array,
    sinks: jax.Array,
    alibi_slopes: jax.Array,
    *,
    nhd: bool,
    scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    sink_tokens: int,
    logits_soft_cap: float,
    max_seqlen_q: int,
    dtype: DTypeLike = jnp.float32,
) -> Results:
    """Attention over packed sequences, whose keys are laid end to end first.

    Args:
      query: [T, Hq, D].
      k_pages: [P, Hkv, page, D], or [P, page, Hkv, D] with ``nhd``.
      v_pages: like ``k_pages``.
      qo_indptr: int32 [B + 1], where the query rows of the requests start and end.
      page_indices: int32 [N].
      page_indptr: int32 [B + 1].
      last_page_len: int32 [B].
      sinks: [B, Hq] or [1, Hq] extra logits in the softmax denominator, or an empty array.
      alibi_slopes: [B, Hq] or [1, Hq], or an empty array.
      nhd: the layout of the stores.
      scale: as in ``flash_attention_reference``, as is what is not named here.
      causal: as there.
      window_left: as there.
      window_right: as there.
      sink_tokens: as there.
      logits_soft_cap: as there.
      max_seqlen_q: of the kernel's grid; not used here.
      dtype: as there.

    Returns:
      out: [T, Hq, D] in the dtype of ``query``, and lse: [T, Hq].
    """
    del max_seqlen_q
    batch, pages, entries = last_page_len.shape[0], k_pages.shape[0], page_indices.shape[0]
    if _is_none(query.shape[0], batch, pages, entries):
        return _nothing(query, dtype)
    page_size = k_pages.shape[1 if nhd else 2]
    requests = table.read(page_indices, page_indptr, last_page_len, page_size)
    owner, position = table.deal(requests.lengths, entries * page_size)
    entry = requests.first[jnp.minimum(owner, batch - 1)] + position // page_size
    page, row = table.pages_at(page_indices, entry, pages), position % page_size

    def packed(store: jax.Array) -> jax.Array:
        """[1, N * page, Hkv, D]."""
        if nhd:
            return store[page, row][None]
        # Every axis before D is indexed: the store is not transposed for its rows.
        head = jnp.arange(store.shape[1])[None, :]
        return store[page[:, None], head, row[:, None]][None]

    ends = jnp.cumsum(requests.lengths, dtype=jnp.int32)
    missing, no_integers = jnp.zeros((0,), jnp.float32), jnp.zeros((0,), jnp.int32)
    out, lse = flash_attention_reference(
        query[None],
        packed(k_pages),
        packed(v_pages),
        bias=missing,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        query_lengths=no_integers,
        kv_lengths=no_integers,
        query_segment_ids=no_integers,
        kv_segment_ids=no_integers,
        cu_seqlens_q=qo_indptr[None],
        cu_seqlens_k=jnp.concatenate([jnp.zeros((1,), jnp.int32), ends])[None],
        dropout_seed=no_integers,
        scale=scale,
        causal=causal,
        top_left=False,
        window_left=window_left,
        window_right=window_right,
        sink_tokens=sink_tokens,
        logits_soft_cap=logits_soft_cap,
        dropout_rate=0.0,
        max_seqlen_q=0,
        max_seqlen_k=0,
        dtype=dtype,
    )
    return out[0], lse[0].T


def _is_none(*sizes: int) -> bool:
    """Whether there is nothing to attend with or to; a symbolic size is not 0."""
    return any(isinstance(size, int) and size == 0 for size in sizes)


def _nothing(query: jax.Array, dtype: DTypeLike) -> Results:
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.zeros_like(query), jnp.full(query.shape[:2], -jnp.inf, wide)
